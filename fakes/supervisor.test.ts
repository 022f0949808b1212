// SPDX-License-Identifier: Apache-2.0

/**
 * The fake supervisor against a gateway (`OPENSHELL_GATEWAY_BIN`, else fakes/gateway.ts) with a scripted driver between
 * them that starts one supervisor for each sandbox, and against a scripted gateway for what no public RPC can reach.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { randomBytes } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createServer, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import * as grpc from "@grpc/grpc-js";
import { until } from "../harness/base/waiting.ts";
import { freePort, writeSigningKeys } from "../harness/runtime/stack.ts";
import { computeDriver, openshell, streaming, unary } from "../proto/contract.ts";
import type { ComputeDriverHandlers } from "../proto/v0.0/types/openshell/compute/v1/ComputeDriver.ts";
import type { DriverSandbox__Output } from "../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import type { ExecSandboxEvent__Output } from "../proto/v0.0/types/openshell/v1/ExecSandboxEvent.ts";
import type { ExecSandboxRequest } from "../proto/v0.0/types/openshell/v1/ExecSandboxRequest.ts";
import type { GatewayMessage } from "../proto/v0.0/types/openshell/v1/GatewayMessage.ts";
import type { OpenShellClient } from "../proto/v0.0/types/openshell/v1/OpenShell.ts";
import type { RelayFrame, RelayFrame__Output } from "../proto/v0.0/types/openshell/v1/RelayFrame.ts";
import type { SandboxSpec } from "../proto/v0.0/types/openshell/v1/SandboxSpec.ts";
import type { SupervisorMessage__Output } from "../proto/v0.0/types/openshell/v1/SupervisorMessage.ts";

const SUPERVISOR = [process.execPath, "--no-env-file", join(import.meta.dir, "supervisor.ts")];
const GATEWAY = process.env.OPENSHELL_GATEWAY_BIN
  ? [process.env.OPENSHELL_GATEWAY_BIN]
  : [process.execPath, join(import.meta.dir, "gateway.ts")];
const DEADLINE = 15_000;
// Bun kills every child process when a test takes too long, so our own deadlines come first.
setDefaultTimeout(4 * DEADLINE);
const folder = mkdtempSync(join(tmpdir(), "sup-"));

afterAll(() => rmSync(folder, { recursive: true, force: true }));

// ------------------------------------------------------------------------------------------------ Supervisors

/** A supervisor under test: its process and the folder that stands for the sandbox's file system. */
interface Supervisor {
  process: Bun.Subprocess;
  root: string;
  workspace: string;
}

interface SupervisorOptions {
  id: string;
  endpoint: string;
  token: string;
  main?: { command: string[]; tty: boolean };
  env?: Record<string, string>;
  root?: string;
  program?: string[];
}

function startSupervisor({
  id,
  endpoint,
  token,
  main,
  env,
  root = join(folder, id),
  program = SUPERVISOR,
}: SupervisorOptions): Supervisor {
  const workspace = join(root, "sandbox");
  mkdirSync(join(root, "etc/openshell/auth"), { recursive: true });
  mkdirSync(workspace, { recursive: true });
  writeFileSync(join(root, "etc/openshell/auth/sandbox.jwt"), `${token}\n`, { mode: 0o600 });
  const child = Bun.spawn([...program, "--workdir", "/sandbox"], {
    cwd: workspace,
    env: {
      PATH: process.env.PATH!,
      ...env,
      OPENSHELL_LOG_LEVEL: "debug",
      OPENSHELL_SANDBOX: "sandbox-name",
      OPENSHELL_SANDBOX_ID: id,
      OPENSHELL_ENDPOINT: endpoint,
      OPENSHELL_SANDBOX_TOKEN_FILE: "/etc/openshell/auth/sandbox.jwt",
      OPENSHELL_MAIN_PROCESS_SPEC: JSON.stringify({
        version: 1,
        ...(main ?? { command: ["sleep", "1000"], tty: false }),
      }),
      OPENSHELL_USER_ENVIRONMENT: JSON.stringify(env ?? {}),
      OPENSHELL_FAKE_ROOT: root,
      OPENSHELL_FAKE_HOSTS: "host.containers.internal=127.0.0.1,other=127.0.0.2",
    },
    stdin: "ignore",
    stdout: "ignore",
    stderr: Bun.file(join(root, "supervisor.log")),
  });
  return { process: child, root, workspace };
}

/** Stops a supervisor as an engine does. @returns its exit code. */
async function stopSupervisor({ process: child }: Supervisor): Promise<number> {
  child.kill("SIGTERM");
  const late = sleep(DEADLINE, undefined, { ref: false }).then(() =>
    Promise.reject(new Error("no exit after SIGTERM")),
  );
  return Promise.race([child.exited, late]);
}

/** Command lines of live processes that work in a folder, or came from one that does. */
function processesIn(workspace: string): string[] {
  return readdirSync("/proc")
    .filter((entry) => /^\d+$/.test(entry))
    .flatMap((pid) => {
      try {
        const environment = readFileSync(`/proc/${pid}/environ`, "latin1");
        return environment.includes(workspace) ? [readFileSync(`/proc/${pid}/cmdline`, "latin1")] : [];
      } catch {
        return [];
      }
    });
}

// ------------------------------------------------------------------------------------------------ Stack

/** A gateway and a scripted driver that starts one supervisor a sandbox. */
class Stack {
  readonly supervisors = new Map<string, Supervisor>();
  readonly client: OpenShellClient;
  readonly #driver = new grpc.Server();
  readonly #sandboxes = new Map<string, DriverSandbox__Output>();
  #gateway: Bun.Subprocess | undefined;
  #names = 0;

  private constructor(
    readonly port: number,
    readonly healthPort: number,
  ) {
    this.client = new (openshell().OpenShell)(`127.0.0.1:${port}`, grpc.credentials.createInsecure(), {
      "grpc.initial_reconnect_backoff_ms": 50,
      "grpc.max_reconnect_backoff_ms": 200,
    });
  }

  static async start(): Promise<Stack> {
    const stack = new Stack(await freePort(), await freePort());
    await stack.#serveDriver();
    stack.#writeConfig();
    await stack.startGateway();
    return stack;
  }

  async stop(): Promise<void> {
    await Promise.all([...this.supervisors.values()].map(stopSupervisor));
    await this.stopGateway();
    this.client.close();
    this.#driver.forceShutdown();
  }

  #writeConfig(): void {
    writeSigningKeys(folder);
    writeFileSync(
      join(folder, "gateway.toml"),
      `[openshell]
version = 1
[openshell.gateway]
bind_address = "127.0.0.1:${this.port}"
health_bind_address = "127.0.0.1:${this.healthPort}"
compute_drivers = ["scripted"]
disable_tls = true
[openshell.gateway.auth]
allow_unauthenticated_users = true
[openshell.gateway.gateway_jwt]
signing_key_path = "${folder}/signing.pem"
public_key_path = "${folder}/public.pem"
kid_path = "${folder}/kid"
gateway_id = "test"
ttl_secs = 0
[openshell.drivers.scripted]
socket_path = "${folder}/driver.sock"
`,
    );
  }

  async startGateway(): Promise<void> {
    const args = [
      "--config",
      join(folder, "gateway.toml"),
      "--db-url",
      `sqlite:${folder}/gateway.db?mode=rwc`,
    ];
    const gateway = Bun.spawn([...GATEWAY, ...args], {
      env: {
        PATH: process.env.PATH!,
        HOME: folder,
        XDG_CONFIG_HOME: folder,
        XDG_STATE_HOME: folder,
        XDG_DATA_HOME: folder,
      },
      stdin: "ignore",
      stdout: Bun.file(join(folder, "gateway.out")),
      stderr: Bun.file(join(folder, "gateway.err")),
    });
    this.#gateway = gateway;
    const ended = () =>
      readFileSync(join(folder, "gateway.out"), "utf8") + readFileSync(join(folder, "gateway.err"), "utf8");
    await until(`${GATEWAY.join(" ")} answers Health`, async () => {
      if (gateway.exitCode !== null) return `exit code ${gateway.exitCode}`;
      return unary(this.client, this.client.health, {}, { deadlineMs: 1_000 });
    });
    if (gateway.exitCode !== null) throw new Error(`the gateway ended with ${gateway.exitCode}: ${ended()}`);
  }

  async stopGateway(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    this.#gateway?.kill(signal);
    await this.#gateway?.exited;
  }

  async #serveDriver(): Promise<void> {
    const start = ({ id, spec }: DriverSandbox__Output) => {
      const { environment = {}, command = [], tty = false, sandbox_token: token = "" } = spec ?? {};
      const endpoint = `http://host.containers.internal:${this.port}`;
      this.supervisors.set(
        id,
        startSupervisor({ id, endpoint, token, main: { command, tty }, env: environment }),
      );
    };
    const stop = async (id: string) => {
      const supervisor = this.supervisors.get(id);
      if (supervisor) await stopSupervisor(supervisor);
    };
    const handlers: ComputeDriverHandlers = {
      GetCapabilities: (_call, done) =>
        done(null, {
          driver_name: "scripted",
          driver_version: "1",
          default_image: "none",
          gateway_manages_lifecycle: false,
        }),
      GetGatewayListenerRequirements: (_call, done) => done(null, { requirements: [] }),
      ValidateSandboxCreate: (_call, done) => done(null, {}),
      CreateSandbox: ({ request }, done) => {
        this.#sandboxes.set(request.sandbox!.id, request.sandbox!);
        start(request.sandbox!);
        done(null, {});
      },
      GetSandbox: ({ request }, done) => {
        const sandbox = this.#sandboxes.get(request.sandbox_id);
        if (sandbox) done(null, { sandbox });
        else done({ code: grpc.status.NOT_FOUND, details: "sandbox not found" });
      },
      ListSandboxes: (_call, done) => done(null, { sandboxes: [...this.#sandboxes.values()] }),
      StopSandbox: ({ request }, done) => void stop(request.sandbox_id).then(() => done(null, {})),
      StartSandbox: ({ request }, done) => {
        start(this.#sandboxes.get(request.sandbox_id)!);
        done(null, {});
      },
      DeleteSandbox: ({ request }, done) => {
        const deleted = this.#sandboxes.delete(request.sandbox_id);
        void stop(request.sandbox_id).then(() => done(null, { deleted }));
      },
      WatchSandboxes: () => {},
      EnsureWorkspace: (_call, done) => done(null, {}),
      DeleteWorkspace: (_call, done) => done(null, {}),
    };
    this.#driver.addService(computeDriver().ComputeDriver.service, handlers);
    await new Promise<void>((resolve, reject) =>
      this.#driver.bindAsync(
        `unix:${folder}/driver.sock`,
        grpc.ServerCredentials.createInsecure(),
        (error) => (error ? reject(error) : resolve()),
      ),
    );
  }

  async create(spec: SandboxSpec = { command: ["sleep", "1000"] }): Promise<{ id: string; name: string }> {
    const request = { name: `s${this.#names++}`, spec };
    const { sandbox } = await unary(this.client, this.client.createSandbox, request, {
      deadlineMs: DEADLINE,
    });
    return { id: sandbox!.metadata!.id, name: sandbox!.metadata!.name };
  }

  async status(name: string) {
    const { sandbox } = await unary(this.client, this.client.getSandbox, { name }, { deadlineMs: DEADLINE });
    return sandbox!.status!;
  }

  /** Waits until the sandbox is in a phase, such as "READY". */
  async phase(name: string, phase: string) {
    return until(`sandbox ${name} is ${phase}`, async () => {
      const status = await this.status(name);
      if (status.phase === `SANDBOX_PHASE_${phase}`) return status;
      const logs = [...this.supervisors.values()].map(({ root }) => join(root, "supervisor.log"));
      throw new Error(`${JSON.stringify(status)}\n${readFileSync(logs.at(-1)!, "utf8")}`);
    });
  }

  async ready(spec?: SandboxSpec): Promise<string> {
    const { id, name } = await this.create(spec);
    await this.phase(name, "READY");
    return id;
  }

  async exec(
    sandbox_id: string,
    command: string[],
    request: Partial<ExecSandboxRequest> = {},
  ): Promise<Executed> {
    const deadline = Date.now() + DEADLINE;
    return collect(streaming(this.client.execSandbox({ ...request, sandbox_id, command }, { deadline })));
  }
}

interface Executed {
  stdout: Buffer;
  stderr: Buffer;
  code: number | undefined;
}

async function collect(events: AsyncIterable<ExecSandboxEvent__Output>): Promise<Executed> {
  const result: Executed = { stdout: Buffer.alloc(0), stderr: Buffer.alloc(0), code: undefined };
  for await (const event of events) {
    if (event.stdout) result.stdout = Buffer.concat([result.stdout, event.stdout.data]);
    if (event.stderr) result.stderr = Buffer.concat([result.stderr, event.stderr.data]);
    if (event.exit) result.code = event.exit.exit_code;
  }
  return result;
}

let stack: Stack;
let sandbox: string;

beforeAll(async () => {
  if (!existsSync(GATEWAY.at(-1)!)) throw new Error(`no gateway: ${GATEWAY.at(-1)} does not exist`);
  stack = await Stack.start();
  sandbox = await stack.ready({
    command: ["sleep", "1000"],
    environment: { MINE: "user", HOME_TOWN: "a b" },
  });
});

afterAll(() => stack?.stop());

// ------------------------------------------------------------------------------------------------ Commands

describe("a command", () => {
  test("returns its output, its errors and its exit code apart", async () => {
    const result = await stack.exec(sandbox, ["sh", "-c", "echo out; echo err >&2; exit 7"]);
    expect({ ...result, stdout: String(result.stdout), stderr: String(result.stderr) }).toEqual({
      stdout: "out\n",
      stderr: "err\n",
      code: 7,
    });
  });

  test("that a signal ends has exit code 1, as with the real supervisor", async () => {
    expect((await stack.exec(sandbox, ["sh", "-c", "kill -KILL $$"])).code).toBe(1);
  });

  test("that does not exist has exit code 127", async () => {
    const { code, stderr } = await stack.exec(sandbox, ["no-such-program"]);
    expect(code).toBe(127);
    expect(String(stderr)).toContain("no-such-program");
  });

  test("gets its arguments unchanged", async () => {
    const args = ["", "a b", "'", '"', "$HOME", "*", "\\", "ä", "-n", ";"];
    const { stdout } = await stack.exec(sandbox, ["printf", "<%s>\\n", ...args]);
    expect(String(stdout)).toBe(args.map((arg) => `<${arg}>\n`).join(""));
  });

  test("reads its input to the end", async () => {
    expect(
      String(
        (await stack.exec(sandbox, ["wc", "-c"], { stdin: Buffer.from("12345") })).stdout.toString().trim(),
      ),
    ).toBe("5");
    expect(String((await stack.exec(sandbox, ["wc", "-c"])).stdout).trim()).toBe("0");
  });

  test("takes and returns 1 MB of arbitrary bytes", async () => {
    const bytes = randomBytes(1_000_000);
    const { stdout, code } = await stack.exec(sandbox, ["cat"], { stdin: bytes });
    expect(code).toBe(0);
    expect(stdout.equals(bytes)).toBe(true);
  });

  test("returns 8 MB of output without loss, and its exit code behind it", async () => {
    const { stdout, stderr, code } = await stack.exec(sandbox, [
      "sh",
      "-c",
      "head -c 8000000 /dev/zero; head -c 100000 /dev/zero >&2; exit 3",
    ]);
    expect([stdout.length, stderr.length, code]).toEqual([8_000_000, 100_000, 3]);
  });

  test("returns bytes that are not UTF-8", async () => {
    const { stdout } = await stack.exec(sandbox, ["printf", "\\377\\000\\376"]);
    expect([...stdout]).toEqual([0xff, 0, 0xfe]);
  });

  test("works in the workspace, and in a folder of it on request", async () => {
    const { workspace } = stack.supervisors.get(sandbox)!;
    expect(String((await stack.exec(sandbox, ["pwd"])).stdout)).toBe(`${workspace}\n`);
    await stack.exec(sandbox, ["mkdir", "-p", "it's a/folder"]);
    const { stdout } = await stack.exec(sandbox, ["pwd"], { workdir: "/sandbox/it's a/folder" });
    expect(String(stdout)).toBe(`${workspace}/it's a/folder\n`);
    expect(String((await stack.exec(sandbox, ["pwd"], { workdir: "it's a" })).stdout)).toBe(
      `${workspace}/it's a\n`,
    );
    expect((await stack.exec(sandbox, ["pwd"], { workdir: "/sandbox/absent" })).code).toBe(1);
  });

  test("sees the user's variables, those of the call, its identity, and no secret", async () => {
    const { stdout } = await stack.exec(sandbox, ["env"], { environment: { CALL: "x'y", MINE: "call" } });
    const lines = String(stdout).split("\n");
    for (const line of [
      "CALL=x'y",
      "MINE=call",
      "HOME_TOWN=a b",
      "USER=sandbox",
      "TERM=dumb",
      "OPENSHELL_SANDBOX=1",
    ]) {
      expect(lines).toContain(line);
    }
    const names = lines.filter((line) => line.startsWith("OPENSHELL_")).map((line) => line.split("=")[0]!);
    expect(names.toSorted()).toEqual(["OPENSHELL_FAKE_ROOT", "OPENSHELL_SANDBOX"]);
  });

  test("ends for the caller with 124 when its time is over", async () => {
    const begin = Date.now();
    expect((await stack.exec(sandbox, ["sleep", "60"], { timeout_seconds: 1 })).code).toBe(124);
    expect(Date.now() - begin).toBeLessThan(5_000);
  });

  test("ends although a child of it keeps its output open", async () => {
    const { code, stdout } = await stack.exec(sandbox, ["sh", "-c", "sleep 60 & echo done"]);
    expect([code, String(stdout)]).toEqual([0, "done\n"]);
  });

  test("may leave an orphan: the supervisor takes it on, and collects it when it has ended", async () => {
    const { stdout } = await stack.exec(sandbox, ["sh", "-c", "sleep 0.5 >&- 2>&- & echo $!"]);
    const orphan = `/proc/${String(stdout).trim()}`;
    const [, parent] = /\) \w (\d+) /.exec(readFileSync(join(orphan, "stat"), "latin1")) ?? [];
    expect(Number(parent)).toBe(stack.supervisors.get(sandbox)!.process.pid);
    await until("the orphan to be gone from the process table", () => !existsSync(orphan));
  });

  test("has a terminal when it asks for one", async () => {
    const { stdout, code } = await stack.exec(
      sandbox,
      ["sh", "-c", "test -t 0 -a -t 1 && echo $TERM; exit 5"],
      { tty: true },
    );
    expect([String(stdout), code]).toEqual(["xterm-256color\r\n", 5]);
  });

  test("runs beside 31 others", async () => {
    const numbers = Array.from({ length: 32 }, (_, index) => String(index));
    const results = await Promise.all(
      numbers.map((n) =>
        stack.exec(sandbox, ["sh", "-c", `read x; echo $x; exit ${n}`], { stdin: Buffer.from(n) }),
      ),
    );
    expect(results.map(({ stdout, code }) => `${String(stdout).trim()} ${code}`)).toEqual(
      numbers.map((n) => `${n} ${n}`),
    );
  });
});

describe("an interactive command", () => {
  test("has a terminal of the size asked for, and is told of a new one", async () => {
    const call = stack.client.execSandboxInteractive({ deadline: Date.now() + DEADLINE });
    const script = "stty size; trap 'stty size; exit 9' WINCH; echo waiting; while :; do sleep 0.05; done";
    call.write({
      start: { sandbox_id: sandbox, command: ["sh", "-c", script], tty: true, cols: 100, rows: 30 },
    });
    let output = "";
    let code: number | undefined;
    for await (const event of streaming(call)) {
      if (event.stdout) output += String(event.stdout.data);
      if (event.exit) code = event.exit.exit_code;
      if (output.endsWith("waiting\r\n")) call.write({ resize: { cols: 120, rows: 40 } });
    }
    expect([output, code]).toEqual(["30 100\r\nwaiting\r\n40 120\r\n", 9]);
  });

  test("gets what is typed, line by line and Ctrl-C as a signal", async () => {
    const call = stack.client.execSandboxInteractive({ deadline: Date.now() + DEADLINE });
    const script =
      "trap 'echo interrupted; exit 4' INT; stty -echo; echo ready; read x; echo got $x; while :; do sleep 0.05; done";
    call.write({
      start: { sandbox_id: sandbox, command: ["sh", "-c", script], tty: true, cols: 80, rows: 24 },
    });
    let output = "";
    let code: number | undefined;
    for await (const event of streaming(call)) {
      if (event.stdout) output += String(event.stdout.data);
      if (event.exit) code = event.exit.exit_code;
      if (output.endsWith("ready\r\n")) call.write({ stdin: Buffer.from("hello\n") });
      if (output.endsWith("got hello\r\n")) call.write({ stdin: Buffer.from([3]) });
    }
    expect([output, code]).toEqual(["ready\r\ngot hello\r\ninterrupted\r\n", 4]);
  });
});

// ------------------------------------------------------------------------------------------------ Main process

describe("the main process", () => {
  test.each([0, 11])(
    "that exits with %d makes the sandbox ERROR with that code, and is the supervisor's own",
    async (code) => {
      const { id, name } = await stack.create({ command: ["sh", "-c", `exit ${code}`] });
      const { exit_code, conditions } = await stack.phase(name, "ERROR");
      expect(exit_code).toBe(code);
      expect(conditions.map(({ type, status, reason }) => `${type}=${status} ${reason}`)).toContain(
        "Ready=False MainProcessExited",
      );
      expect(await stack.supervisors.get(id)!.process.exited).toBe(code);
    },
  );

  test("that a signal ends is reported as 128 + signal", async () => {
    const { name } = await stack.create({ command: ["sh", "-c", "kill -KILL $$"] });
    expect((await stack.phase(name, "ERROR")).exit_code).toBe(137);
  });

  test("that ends later ends a sandbox that was Ready", async () => {
    const { id, name } = await stack.create({
      command: ["sh", "-c", "until [ -e stop ]; do sleep 0.05; done; exit 3"],
    });
    await stack.phase(name, "READY");
    writeFileSync(join(stack.supervisors.get(id)!.workspace, "stop"), "");
    expect((await stack.phase(name, "ERROR")).exit_code).toBe(3);
  });

  test("that does not exist ends the supervisor with 1 and is named in its log", async () => {
    const { id } = await stack.create({ command: ["/no/such/program"] });
    const { process: child, root } = stack.supervisors.get(id)!;
    expect(await child.exited).toBe(1);
    expect(readFileSync(join(root, "supervisor.log"), "utf8")).toContain("/no/such/program");
  });

  test("gets its arguments unchanged", async () => {
    const args = ["", "a b", "'", '"', "$HOME", "*", "\\", "ä", "line\nbreak", "-n", ";"];
    const script = 'printf "<%s>\\n" "$@" > args.new; mv args.new args; sleep 1000';
    const id = await stack.ready({ command: ["sh", "-c", script, "sh", ...args] });
    const file = join(stack.supervisors.get(id)!.workspace, "args");
    expect(await until("the arguments", () => readFileSync(file, "utf8"))).toBe(
      args.map((arg) => `<${arg}>\n`).join(""),
    );
  });

  test.each([true, false])(
    "has a terminal when asked (tty %p), and the environment of the container but no secret",
    async (tty) => {
      const script = "(test -t 0 && stty size; env) > seen.new 2>&1; mv seen.new seen; sleep 1000";
      const id = await stack.ready({
        command: ["sh", "-c", script],
        tty,
        environment: { MINE: "user", USER: "me" },
      });
      const { workspace } = stack.supervisors.get(id)!;
      const lines = (
        await until("its environment", () => readFileSync(join(workspace, "seen"), "utf8"))
      ).split("\n");
      expect(lines[0] === "24 80").toBe(tty);
      for (const line of [
        "MINE=user",
        "USER=me",
        `HOME=${workspace}`,
        "OPENSHELL_SANDBOX=1",
        `OPENSHELL_SANDBOX_ID=${id}`,
      ]) {
        expect(lines).toContain(line);
      }
      expect(lines).toContain(tty ? "TERM=xterm-256color" : "TERM=dumb");
      expect(lines.filter((line) => /TOKEN|TLS|FAKE_HOSTS/.test(line))).toEqual([]);
    },
  );
});

// ------------------------------------------------------------------------------------------------ Session

describe("the session", () => {
  test("carries the supervisor's log lines", async () => {
    const logs = await until("log lines of the sandbox", async () => {
      const request = { sandbox_id: sandbox, sources: ["sandbox"] };
      const { logs: lines } = await unary(stack.client, stack.client.getSandboxLogs, request, {
        deadlineMs: DEADLINE,
      });
      return lines.some(({ message }) => message === "main process started") ? lines : undefined;
    });
    expect(logs.every(({ source, sandbox_id }) => source === "sandbox" && sandbox_id === sandbox)).toBe(true);
  });

  test("comes back when the gateway was killed and restarted", async () => {
    const { id, name } = await stack.create();
    await stack.phase(name, "READY");
    await stack.stopGateway("SIGKILL");
    await stack.startGateway();
    // It may be called Ready, as it was, until the gateway finds that there is no session yet.
    const back = async () => String((await stack.exec(id, ["echo", "back"])).stdout) === "back\n";
    await until("a command to run again", back);
  });
});

describe("SIGTERM", () => {
  test.each([false, true])(
    "ends every process and exits 0 within 5 s (main process on a terminal: %p)",
    async (tty) => {
      const { id, name } = await stack.create(
        tty ? { command: ["/bin/bash", "-l"], tty } : { command: ["sleep", "1000"] },
      );
      await stack.phase(name, "READY");
      const supervisor = stack.supervisors.get(id)!;
      await stack.exec(id, [
        "sh",
        "-c",
        "setsid sleep 1000 > /dev/null 2>&1 & trap '' TERM HUP; (sleep 1000; sleep 1000) > /dev/null 2>&1 &",
      ]);
      await until("three sleeping processes", () => {
        const sleeping = processesIn(supervisor.workspace).filter((line) => line.startsWith("sleep"));
        return sleeping.length >= (tty ? 2 : 3);
      });
      const begin = Date.now();
      expect(await stopSupervisor(supervisor)).toBe(0);
      expect(Date.now() - begin).toBeLessThan(5_000);
      expect(processesIn(supervisor.workspace)).toEqual([]);
    },
  );

  test("stops it while the gateway is out of reach", async () => {
    const endpoint = `http://127.0.0.1:${await freePort()}`;
    const supervisor = startSupervisor({ id: "lonely", endpoint, token: "t" });
    const log = join(supervisor.root, "supervisor.log");
    await until("its first line", () => readFileSync(log, "utf8").includes(`connecting to ${endpoint}`));
    expect(await stopSupervisor(supervisor)).toBe(0);
  });
});

// ------------------------------------------------------------------------------------------------ Scripted gateway

type Session = grpc.ServerDuplexStream<SupervisorMessage__Output, GatewayMessage>;
type Relay = grpc.ServerDuplexStream<RelayFrame__Output, RelayFrame>;

/** A gateway that does what a test says, for what no public RPC reaches. */
class ScriptedGateway {
  readonly server = new grpc.Server();
  readonly sessions: Session[] = [];
  readonly received: SupervisorMessage__Output[] = [];
  readonly relays: { call: Relay; channel: string; bytes: Buffer; ended: boolean }[] = [];
  readonly authorizations = new Set<string>();
  port = 0;

  async start(credentials = grpc.ServerCredentials.createInsecure()): Promise<this> {
    this.server.addService(openshell().OpenShell.service, {
      ConnectSupervisor: (call: Session) => {
        this.sessions.push(call);
        this.authorizations.add(String(call.metadata.get("authorization")[0]));
        call.on("data", (message: SupervisorMessage__Output) => this.received.push(message));
        call.on("error", () => {});
        call.write({ session_accepted: { session_id: "1", heartbeat_interval_secs: 1 } });
      },
      RelayStream: (call: Relay) => {
        const relay = { call, channel: "", bytes: Buffer.alloc(0), ended: false };
        this.relays.push(relay);
        call.on("data", (frame: RelayFrame__Output) => {
          if (frame.init) relay.channel = frame.init.channel_id;
          if (frame.data) relay.bytes = Buffer.concat([relay.bytes, frame.data]);
        });
        call.on("end", () => (relay.ended = true));
        call.on("error", () => {});
      },
    });
    this.port = await new Promise<number>((resolve, reject) =>
      this.server.bindAsync("127.0.0.1:0", credentials, (error, port) =>
        error ? reject(error) : resolve(port),
      ),
    );
    return this;
  }

  async session(index = 0): Promise<Session> {
    return until(`session ${index}`, () => this.sessions[index]);
  }

  /** The answer to a relay_open. */
  async openRelay(channel_id: string, host: string, port: number) {
    (await this.session()).write({ relay_open: { channel_id, tcp: { host, port } } });
    return until(`answer to relay ${channel_id}`, () =>
      this.received
        .map((message) => message.relay_open_result)
        .find((result) => result?.channel_id === channel_id),
    );
  }
}

describe("with a scripted gateway", () => {
  let gateway: ScriptedGateway;
  let supervisor: Supervisor;

  beforeAll(async () => {
    gateway = await new ScriptedGateway().start();
    const endpoint = `http://host.containers.internal:${gateway.port}`;
    supervisor = startSupervisor({ id: "scripted", endpoint, token: "secret" });
  });

  afterAll(async () => {
    await stopSupervisor(supervisor);
    gateway.server.forceShutdown();
  });

  test("the session begins with a hello and the token, and heartbeats follow, 5 s apart at least", async () => {
    await gateway.session();
    expect([...gateway.authorizations]).toEqual(["Bearer secret"]);
    const hello = await until("hello", () => gateway.received[0]?.hello);
    expect(hello).toEqual({ sandbox_id: "scripted", instance_id: expect.stringMatching(/^[0-9a-f-]{36}$/) });
    await until("a heartbeat", () => gateway.received.some(({ payload }) => payload === "heartbeat"));
  });

  test("a tcp relay carries bytes both ways until the target ends it", async () => {
    const server = createServer((socket) => {
      let received = 0;
      socket.on("data", (data) => {
        received += data.length;
        if (received === 1_000_000) socket.end(Buffer.alloc(1_000_000, "x"));
      });
    }).listen(0, "127.0.0.1");
    await new Promise((resolve) => server.once("listening", resolve));
    const { port } = server.address() as AddressInfo;
    expect(await gateway.openRelay("tcp-1", "localhost", port)).toMatchObject({ success: true, error: "" });
    const relay = await until("the relay", () => gateway.relays.find(({ channel }) => channel === "tcp-1"));
    for (let n = 0; n < 20; n++) relay.call.write({ data: Buffer.alloc(50_000) });
    await until("the end of the relay", () => relay.ended);
    expect(relay.bytes.equals(Buffer.alloc(1_000_000, "x"))).toBe(true);
    server.close();
  });

  test("a tcp relay that the gateway ends closes its connection", async () => {
    const closed = Promise.withResolvers<string>();
    const server = createServer((socket) => {
      let received = "";
      socket.on("data", (data) => (received += String(data))).on("close", () => closed.resolve(received));
    }).listen(0, "127.0.0.1");
    await new Promise((resolve) => server.once("listening", resolve));
    await gateway.openRelay("tcp-2", "127.0.0.1", (server.address() as AddressInfo).port);
    const relay = await until("the relay", () => gateway.relays.find(({ channel }) => channel === "tcp-2"));
    relay.call.write({ data: Buffer.from("last words") });
    relay.call.end();
    expect(await closed.promise).toBe("last words");
    server.close();
  });

  test.each([
    ["10.0.0.1", 80, "loopback"],
    ["127.0.0.1.example", 80, "loopback"],
    ["127.0.0.1", 0, "between 1 and 65535"],
    ["127.0.0.1", 65_536, "between 1 and 65535"],
    ["127.0.0.1", 1, "ECONNREFUSED"],
  ])("a relay to %s port %d is refused", async (host, port, reason) => {
    const result = await gateway.openRelay(`refused-${host}-${port}`, host, port);
    expect(result.success).toBe(false);
    expect(result.error).toContain(reason);
  });

  test("another session is opened after the gateway ends or rejects one, by the same instance", async () => {
    (await gateway.session()).end();
    (await gateway.session(1)).write({ session_rejected: { reason: "not now" } });
    await gateway.session(2);
    const hellos = await until("three hellos", () => {
      const found = gateway.received.flatMap(({ hello }) => (hello ? [hello.instance_id] : []));
      return found.length === 3 ? found : undefined;
    });
    expect(new Set(hellos).size).toBe(1);
  });
});

test("compiled into one file it needs nothing beside it", async () => {
  const program = join(folder, "openshell-sandbox");
  const build = Bun.spawnSync(
    [process.execPath, "build", "--compile", SUPERVISOR.at(-1)!, "--outfile", program],
    { cwd: folder },
  );
  expect(String(build.stderr) + build.exitCode).toEndWith("0");
  const gateway = await new ScriptedGateway().start();
  const endpoint = `http://127.0.0.1:${gateway.port}`;
  const supervisor = startSupervisor({ id: "compiled", endpoint, token: "secret", program: [program] });
  await gateway.session();
  expect(await stopSupervisor(supervisor)).toBe(0);
  gateway.server.forceShutdown();
});

test("the session runs over mTLS, by the name that the endpoint has in the sandbox", async () => {
  const pki = join(folder, "pki");
  const generate = Bun.spawnSync(
    [...GATEWAY, "generate-certs", "--output-dir", pki, "--server-san", "host.containers.internal"],
    { env: { PATH: process.env.PATH!, HOME: folder, XDG_CONFIG_HOME: folder, XDG_STATE_HOME: folder } },
  );
  expect(String(generate.stderr) + generate.exitCode).toEndWith("0");
  const read = (path: string) => readFileSync(join(pki, path));
  const pair = { private_key: read("server/tls.key"), cert_chain: read("server/tls.crt") };
  const gateway = await new ScriptedGateway().start(
    grpc.ServerCredentials.createSsl(read("ca.crt"), [pair], true),
  );
  const root = join(folder, "mtls");
  mkdirSync(root);
  for (const name of ["ca.crt", "client/tls.crt", "client/tls.key"]) {
    writeFileSync(join(root, name.replace("/", "-")), read(name));
  }
  const supervisor = startSupervisor({
    id: "mtls",
    root,
    endpoint: `https://host.containers.internal:${gateway.port}`,
    token: "secret",
    env: {
      OPENSHELL_TLS_CA: "/ca.crt",
      OPENSHELL_TLS_CERT: "/client-tls.crt",
      OPENSHELL_TLS_KEY: "/client-tls.key",
    },
  });
  await gateway.session();
  expect(await stopSupervisor(supervisor)).toBe(0);
  gateway.server.forceShutdown();
});

test.each([
  [["--no-such-flag"], {}, "unexpected argument '--no-such-flag'"],
  [["--workdir"], {}, "a value is required for '--workdir'"],
  [[], {}, "OPENSHELL_SANDBOX_ID is not set"],
  [[], { OPENSHELL_SANDBOX_ID: "x", OPENSHELL_ENDPOINT: "host:1" }, "OPENSHELL_ENDPOINT must be"],
  [[], { OPENSHELL_MAIN_PROCESS_SPEC: '{"version":2,"command":["a"]}' }, "has version 2, expected 1"],
])("a mistake in the settings is one line and exit code 2: %p %p", (args, env, message) => {
  const { exitCode, stderr } = Bun.spawnSync([...SUPERVISOR, ...args], {
    env: { PATH: process.env.PATH!, ...env },
  });
  expect(String(stderr)).toStartWith("openshell-sandbox: ");
  expect(String(stderr).trimEnd().split("\n")).toHaveLength(1);
  expect(String(stderr)).toContain(message);
  expect(exitCode).toBe(2);
});
