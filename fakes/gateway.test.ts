// SPDX-License-Identifier: Apache-2.0

/**
 * What the fake gateway has beside its dealings with a driver, which scenarios/gateway-adapter proves: exec, watch and
 * logs, who may call what, its command line and its file, TLS. The same holds for the real one:
 * `OPENSHELL_GATEWAY_BIN=.../openshell-gateway bun test fakes/gateway.test.ts`. The few that differ by nature say why.
 */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import * as grpc from "@grpc/grpc-js";
import { until } from "../harness/base/waiting.ts";
import { outcomeOf, streaming, unary } from "../proto/contract.ts";
import type { CreateSandboxRequest } from "../proto/v0.0/types/openshell/v1/CreateSandboxRequest.ts";
import type { ExecSandboxEvent__Output } from "../proto/v0.0/types/openshell/v1/ExecSandboxEvent.ts";
import type { ExecSandboxRequest } from "../proto/v0.0/types/openshell/v1/ExecSandboxRequest.ts";
import { Bench, gateways } from "../scenarios/gateway-adapter/given.ts";
import { type GatewayProcess, isReal, Lab } from "../scenarios/gateway-adapter/gateway-process.ts";
import { ScriptedSupervisor } from "../scenarios/gateway-adapter/scripted-supervisor.ts";

setDefaultTimeout(60_000); // above every deadline in here: a test that times out takes the gateways with it

const { status: code } = grpc;
const CALL = { deadlineMs: 20_000 };

async function exec(gateway: GatewayProcess, request: ExecSandboxRequest) {
  return await collect(streaming(gateway.client.ExecSandbox(request, { deadline: Date.now() + 20_000 })));
}

async function collect(events: AsyncIterable<ExecSandboxEvent__Output>) {
  const result = { stdout: "", stderr: "", exitCode: undefined as number | undefined };
  for await (const { stdout, stderr, exit } of events) {
    result.stdout += stdout?.data.toString() ?? "";
    result.stderr += stderr?.data.toString() ?? "";
    if (exit) result.exitCode = exit.exit_code;
  }
  return result;
}

const { scenario: row } = gateways();

for (const operation of ["start", "delete"] as const)
  row(`a ${operation} whose user leaves while it waits for another operation never begins`, async (bench) => {
    const { driver } = bench;
    const sandbox = await bench.readySandbox();
    const release = driver.hang("StopSandbox");
    const stopping = sandbox.stop();
    await until("the stop to reach the driver", () => driver.called("StopSandbox", sandbox.id)[0]);
    expect(await outcomeOf(sandbox[operation]({ deadlineMs: 300 }))).toStartWith("DEADLINE_EXCEEDED");
    // One more call on the same connection: the gateway has heard that the user left once it answers.
    await sandbox.state();
    release();
    await stopping;
    // One more operation, behind the one that was given up.
    expect(await sandbox.stop()).toBeDefined();
    expect(driver.called(operation === "start" ? "StartSandbox" : "DeleteSandbox", sandbox.id)).toEqual([]);
    expect(await sandbox.state()).toBe("STOPPED False/Stopped");
  });

describe("what a sandbox may be", () => {
  const spec = (fields: NonNullable<CreateSandboxRequest["spec"]>): CreateSandboxRequest => ({
    spec: fields,
  });
  const refused: [CreateSandboxRequest, string][] = [
    [{ labels: { "": "x" } }, "label key cannot be empty"],
    [{ labels: { "-a": "x" } }, "label key name segment must start with alphanumeric character: '-a'"],
    [
      { labels: { "a!": "x" } },
      "label key name segment contains invalid characters (must be alphanumeric, '-', '_', or '.'): 'a!'",
    ],
    [
      { labels: { "Big/a": "x" } },
      "label key prefix must be a DNS subdomain (lowercase alphanumeric, '-', '.'): 'Big/a'",
    ],
    [
      { labels: { a: "x y" } },
      "label value contains invalid characters (must be alphanumeric, '-', '_', or '.'): 'x y'",
    ],
    [{ labels: { a: "x".repeat(64) } }, `label value exceeds 63 characters: '${"x".repeat(64)}'`],
    [{ annotations: { "a/": "x" } }, "label key name segment cannot be empty: 'a/'"],
    [
      spec({ environment: { "1A": "" } }),
      "spec.environment keys must match ^[A-Za-z_][A-Za-z0-9_]*$; got '1A'",
    ],
    [
      spec({ environment: { OPENSHELL_X: "" } }),
      "spec.environment keys starting with OPENSHELL_ are reserved; got 'OPENSHELL_X'",
    ],
    [
      spec({ environment: { A: "1\n2" } }),
      "spec.environment value for 'A' contains newline or carriage return characters",
    ],
    [
      spec({ environment: { A: "x".repeat(8193) } }),
      "spec.environment value exceeds maximum length (8193 > 8192)",
    ],
    [
      spec({
        environment: Object.fromEntries(Array.from({ length: 129 }, (_, index) => [`A${index}`, ""])),
      }),
      "spec.environment exceeds maximum entries (129 > 128)",
    ],
    [
      spec({ template: { environment: { OPENSHELL_X: "" } } }),
      "spec.template.environment keys starting with OPENSHELL_ are reserved; got 'OPENSHELL_X'",
    ],
    [spec({ template: { image: "x".repeat(1025) } }), "template.image exceeds maximum length (1025 > 1024)"],
    [
      spec({
        template: {
          driver_config: { fields: { a: { stringValue: "x".repeat(65_536), kind: "stringValue" } } },
        },
      }),
      "template.driver_config serialized size exceeds maximum (65551 > 65536)",
    ],
    [spec({ log_level: "x".repeat(33) }), "log_level exceeds maximum length (33 > 32)"],
    [spec({ command: [""] }), "spec.command[0] must not be empty"],
    [spec({ command: ["a\0b"] }), "spec.command[0] contains null bytes"],
    [spec({ resource_requirements: { gpu: { count: 0 } } }), "gpu count must be greater than 0"],
  ];
  row("what is not allowed is refused with its own message", async (bench) => {
    const answers = await Promise.all(refused.map(([request]) => outcomeOf(bench.create(request))));
    expect(answers).toEqual(refused.map(([, message]) => `INVALID_ARGUMENT: ${message}`));
  });
});

describe("exec", () => {
  row(
    "output, error output and exit code come back; environment and folder travel in the command",
    async (bench) => {
      const { id, supervisor } = await bench.readySandbox();
      const result = await exec(bench.gateway, {
        sandbox_id: id,
        command: ["sh", "-c", 'echo "$GREETING from $PWD"; echo oops >&2; exit 7'],
        environment: { GREETING: "it's me" },
        workdir: "/tmp",
      });
      expect(result).toEqual({ stdout: "it's me from /tmp\n", stderr: "oops\n", exitCode: 7 });
      expect(supervisor.commands[0]!.command).toBe(
        `cd /tmp && GREETING='it'"'"'s me' sh -c 'echo "$GREETING from $PWD"; echo oops >&2; exit 7'`,
      );
    },
  );

  row("stdin is passed and closed", async (bench) => {
    const { id } = await bench.readySandbox();
    const result = await exec(bench.gateway, {
      sandbox_id: id,
      command: ["cat"],
      stdin: Buffer.from("hello"),
    });
    expect(result).toEqual({ stdout: "hello", stderr: "", exitCode: 0 });
  });

  row("a megabyte of output arrives whole", async (bench) => {
    const { id } = await bench.readySandbox();
    const result = await exec(bench.gateway, {
      sandbox_id: id,
      command: ["sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x"],
    });
    expect([result.stdout.length, result.exitCode]).toEqual([1_000_000, 0]);
  });

  row("a command that takes too long ends with exit code 124", async (bench) => {
    const { id } = await bench.readySandbox();
    const result = await exec(bench.gateway, {
      sandbox_id: id,
      command: ["sleep", "30"],
      timeout_seconds: 1,
    });
    expect(result.exitCode).toBe(124);
  });

  row("an interactive run has a terminal that follows the window, and input while it runs", async (bench) => {
    const { id, supervisor } = await bench.readySandbox();
    const call = bench.gateway.client.ExecSandboxInteractive({ deadline: Date.now() + 20_000 });
    const result = collect(streaming(call));
    call.write({ start: { sandbox_id: id, command: ["head", "-n", "2"], tty: true, cols: 100, rows: 30 } });
    call.write({ stdin: Buffer.from("one\n") });
    call.write({ resize: { cols: 120, rows: 40 } });
    await until("the new size", () => supervisor.commands[0]?.sizes[1], {
      seen: () => supervisor.commands,
    });
    call.write({ stdin: Buffer.from("two\n") });
    expect(await result).toEqual({ stdout: "one\ntwo\n", stderr: "", exitCode: 0 });
    expect(supervisor.commands[0]!.sizes).toEqual(["100x30", "120x40"]);
  });

  row("an interactive run whose input ends before the command does is cut off", async (bench) => {
    const { id } = await bench.readySandbox();
    const call = bench.gateway.client.ExecSandboxInteractive({ deadline: Date.now() + 20_000 });
    call.write({ start: { sandbox_id: id, command: ["sh", "-c", "cat; sleep 30"] } });
    call.end();
    expect(await outcomeOf(collect(streaming(call)))).toBe(
      "UNAVAILABLE: exec relay closed before the command reported an exit status",
    );
  });

  row("what cannot be run is refused", async (bench) => {
    const { id } = await bench.readySandbox();
    const { id: unready } = await bench.create();
    const run = (request: ExecSandboxRequest) => outcomeOf(exec(bench.gateway, request));
    expect(await run({})).toBe("INVALID_ARGUMENT: sandbox_id is required");
    expect(await run({ sandbox_id: id })).toBe("INVALID_ARGUMENT: command is required");
    expect(await run({ sandbox_id: id, command: ["x"], environment: { "1": "" } })).toBe(
      "INVALID_ARGUMENT: environment keys must match ^[A-Za-z_][A-Za-z0-9_]*$",
    );
    expect(await run({ sandbox_id: id, command: ["x"], environment: { OPENSHELL_X: "" } })).toBe(
      "INVALID_ARGUMENT: environment keys starting with OPENSHELL_ are reserved; got 'OPENSHELL_X'",
    );
    expect(await run({ sandbox_id: id, command: ["x"], workdir: "a\nb" })).toBe(
      "INVALID_ARGUMENT: workdir contains newline or carriage return characters",
    );
    expect(await run({ sandbox_id: "nobody", command: ["x"] })).toBe("NOT_FOUND: sandbox not found");
    expect(await run({ sandbox_id: unready, command: ["x"] })).toBe(
      "FAILED_PRECONDITION: sandbox is not ready",
    );
  });

  row("a relay that the supervisor cannot open fails the run with its words", async (bench) => {
    const { id, supervisor } = await bench.readySandbox();
    supervisor.relays = "refused";
    expect(await outcomeOf(exec(bench.gateway, { sandbox_id: id, command: ["true"] }))).toBe(
      "UNAVAILABLE: no SSH here",
    );
  });

  row("a supervisor that dies ends its runs", async (bench) => {
    const { id, supervisor } = await bench.readySandbox();
    const request = { sandbox_id: id, command: ["sh", "-c", "echo up; sleep 30"] };
    const events = streaming(bench.gateway.client.ExecSandbox(request, { deadline: Date.now() + 20_000 }));
    expect((await events.next()).value!.stdout!.data.toString()).toBe("up\n");
    supervisor.die();
    expect(await outcomeOf(collect(events))).toBe(
      "UNAVAILABLE: exec relay closed before the command reported an exit status",
    );
  });

  row(
    "a caller who leaves ends an interactive run at its next output, and a plain one never",
    async (bench) => {
      const { id, supervisor } = await bench.readySandbox();
      const leave = async (call: grpc.ClientReadableStream<ExecSandboxEvent__Output>) => {
        call.on("error", () => {});
        await new Promise((resolve) => call.once("data", resolve));
        call.cancel();
      };
      const interactive = bench.gateway.client.ExecSandboxInteractive();
      const command = ["sh", "-c", "while echo more; do sleep 0.02; done"];
      interactive.write({ start: { sandbox_id: id, command } });
      await leave(interactive);
      await until("the channel to close", () => supervisor.commands[0]!.closed || undefined);

      const proof = bench.lab.path("proof");
      const lasting = ["sh", "-c", `echo go; sleep 0.1; echo on; touch ${proof}`];
      await leave(bench.gateway.client.ExecSandbox({ sandbox_id: id, command: lasting }));
      await until("the command to finish", () => existsSync(proof) || undefined);
    },
  );
});

describe("watch, logs and lists", () => {
  row("a watch that follows nothing shows the sandbox once", async (bench) => {
    const { id } = await bench.readySandbox();
    const events = streaming(bench.gateway.client.WatchSandbox({ id, stop_on_terminal: true }));
    expect((await events.next()).value!.payload).toBe("sandbox");
    expect((await events.next()).done).toBe(true);
    const watch = (request: object) =>
      outcomeOf(streaming(bench.gateway.client.WatchSandbox(request)).next());
    expect(await watch({})).toBe("INVALID_ARGUMENT: id is required");
    expect(await watch({ id: "nobody" })).toBe("NOT_FOUND: sandbox not found");
  });

  row("the supervisor's lines and the gateway's own are a sandbox's log", async (bench) => {
    const { id, supervisor } = await bench.readySandbox();
    const { client } = bench.gateway;
    await new Promise<void>((resolve, reject) => {
      const call = client.PushSandboxLogs(supervisor.metadata(), (error) =>
        error ? reject(error) : resolve(),
      );
      call.write({
        sandbox_id: id,
        logs: [
          { level: "WARN", message: "careful", timestamp_ms: 1 },
          { level: "DEBUG", message: "detail" },
        ],
      });
      call.end();
    });
    const logs = async (filter: object) =>
      (await unary(client, client.GetSandboxLogs, { sandbox_id: id, ...filter }, CALL)).logs;
    expect((await logs({ sources: ["sandbox"] })).map(({ message }) => message)).toEqual([
      "careful",
      "detail",
    ]);
    expect((await logs({ sources: ["sandbox"], min_level: "INFO" })).map(({ message }) => message)).toEqual([
      "careful",
    ]);
    expect((await logs({ sources: ["gateway"] })).map(({ message }) => message)).toContain(
      "supervisor session: accepted",
    );
    expect(await logs({ lines: 1 })).toHaveLength(1);
    expect(await outcomeOf(unary(client, client.GetSandboxLogs, {}, CALL))).toBe(
      "INVALID_ARGUMENT: sandbox_id is required",
    );
  });

  row("lists are filtered by label, paged, and by workspace", async (bench) => {
    const { client } = bench.gateway;
    await unary(client, client.CreateWorkspace, { name: "side" }, CALL);
    for (const [name, size] of [
      ["l-1", "s"],
      ["l-2", "m"],
      ["l-3", "m"],
    ]) {
      await bench.create({ name, labels: { "example.com/size": size!, kind: "listed" } });
    }
    await bench.create({ name: "l-1", workspace: "side", labels: { kind: "listed" } });
    const names = async (request: object) =>
      (await unary(client, client.ListSandboxes, request, CALL)).sandboxes.map(
        ({ metadata }) => metadata!.name,
      );
    expect(await names({ label_selector: "kind=listed" })).toEqual(["l-1", "l-2", "l-3"]);
    expect(await names({ label_selector: "kind=listed, example.com/size=m" })).toEqual(["l-2", "l-3"]);
    expect(await names({ label_selector: "kind=listed", limit: 1, offset: 1 })).toEqual(["l-2"]);
    expect(await names({ label_selector: "kind=listed", all_workspaces: true })).toEqual([
      "l-1",
      "l-2",
      "l-3",
      "l-1",
    ]);
    expect(await names({ workspace: "side" })).toEqual(["l-1"]);
    const list = (request: object) => outcomeOf(unary(client, client.ListSandboxes, request, CALL));
    expect(await list({ workspace: "side", all_workspaces: true })).toBe(
      "INVALID_ARGUMENT: all_workspaces and workspace are mutually exclusive",
    );
    expect(await list({ label_selector: "kind" })).toBe(
      "INVALID_ARGUMENT: invalid label selector: expected 'key=value', got 'kind'",
    );
  });

  row("a workspace lives until it is deleted, and its name is its own", async (bench) => {
    const { client } = bench.gateway;
    const call = (method: "CreateWorkspace" | "GetWorkspace" | "DeleteWorkspace", name: string) =>
      outcomeOf(unary(client, client[method] as typeof client.GetWorkspace, { name }, CALL));
    expect(await call("CreateWorkspace", "Bad")).toBe(
      "INVALID_ARGUMENT: workspace name must contain only lowercase alphanumeric characters or hyphens",
    );
    expect(await call("CreateWorkspace", "")).toBe("INVALID_ARGUMENT: workspace name is required");
    expect(await call("CreateWorkspace", "w")).toBe("OK");
    expect(await call("CreateWorkspace", "w")).toBe("ALREADY_EXISTS: workspace already exists");
    expect(await call("DeleteWorkspace", "default")).toBe(
      "FAILED_PRECONDITION: the default workspace cannot be deleted",
    );
    expect(await call("DeleteWorkspace", "nowhere")).toBe("NOT_FOUND: workspace 'nowhere' not found");
    const inside = await bench.create({ name: "inside", workspace: "w" });
    expect(await call("DeleteWorkspace", "w")).toStartWith("FAILED_PRECONDITION");
    expect(await outcomeOf(bench.create({ workspace: "w" }))).toBe(
      "FAILED_PRECONDITION: workspace 'w' is being deleted",
    );
    bench.driver.deleted(inside.id);
    await until("w to be deleted", async () => (await call("DeleteWorkspace", "w")) === "OK");
    expect(await call("GetWorkspace", "w")).toBe("NOT_FOUND: workspace not found");
  });

  row("a request must name what it is about", async (bench) => {
    expect(await outcomeOf(bench.get(""))).toBe("INVALID_ARGUMENT: name is required");
    expect(await outcomeOf(bench.get("nobody"))).toBe("NOT_FOUND: sandbox not found");
  });
});

describe("who may call what", () => {
  const as = (token: string) => {
    const metadata = new grpc.Metadata();
    metadata.set("authorization", `Bearer ${token}`);
    return { ...CALL, metadata };
  };

  row("a supervisor calls for its own sandbox and no more", async (bench) => {
    const [mine, other] = [await bench.readySandbox(), await bench.readySandbox()];
    const { client } = bench.gateway;
    const options = { ...CALL, metadata: mine.supervisor.metadata() };
    expect(await outcomeOf(unary(client, client.GetSandbox, { name: mine.name }, options))).toBe(
      "PERMISSION_DENIED: sandbox principals may not call this method",
    );
    expect(
      await outcomeOf(unary(client, client.GetSandboxProviderEnvironment, { sandbox_id: other.id }, options)),
    ).toBe("PERMISSION_DENIED: cross-sandbox access denied: principal does not own this sandbox");
    expect(
      await outcomeOf(unary(client, client.GetSandboxProviderEnvironment, { sandbox_id: mine.id }, options)),
    ).toStartWith("OK");
  });

  row("a user may not call for a sandbox, a forged or foreign token is refused", async (bench) => {
    const { id, supervisor } = await bench.readySandbox();
    const { client } = bench.gateway;
    const report = (options: object) =>
      outcomeOf(
        unary(
          client,
          client.ReportMainProcessExit,
          { sandbox_id: id, instance_id: "i" },
          { ...CALL, ...options },
        ),
      );
    expect(await report({})).toBe("PERMISSION_DENIED: this method requires a sandbox principal");
    const token = String(supervisor.metadata().get("authorization")[0]).replace("Bearer ", "");
    const forged = token
      .split(".")
      .with(1, Buffer.from(JSON.stringify({ sandbox_id: "x" })).toString("base64url"))
      .join(".");
    expect(await report(as(forged))).toStartWith("UNAUTHENTICATED: invalid token");
    expect(await report(as("nonsense"))).toStartWith("UNAUTHENTICATED: invalid token");
  });

  row("a refreshed token is as good as the first", async (bench) => {
    const { id, supervisor } = await bench.readySandbox();
    const { client } = bench.gateway;
    const { token } = await unary(
      client,
      client.RefreshSandboxToken,
      {},
      { ...CALL, metadata: supervisor.metadata() },
    );
    const { sandbox_id } = JSON.parse(Buffer.from(token.split(".")[1]!, "base64url").toString());
    expect(sandbox_id).toBe(id);
    expect(
      await outcomeOf(unary(client, client.GetSandboxProviderEnvironment, { sandbox_id: id }, as(token))),
    ).toStartWith("OK");
  });

  row("a session is for the sandbox of its token alone", async (bench) => {
    const { id } = await bench.create();
    const token = bench.driver.created.get(id)!.spec!.sandbox_token;
    const stranger = new ScriptedSupervisor(bench.gateway.client, "nobody", token);
    expect(await stranger.end()).toMatchObject({ code: code.PERMISSION_DENIED });
  });

  row("a supervisor stores the policy that it found, and reports that it is loaded", async (bench) => {
    const { id, name, supervisor } = await bench.readySandbox();
    const { client } = bench.gateway;
    const options = { ...CALL, metadata: supervisor.metadata() };
    // The real gateway lists unset settings as map entries without a value, which protobufjs cannot decode.
    const config = async (expected: object) => {
      if (isReal) return;
      const answer = await unary(client, client.GetSandboxConfig, { sandbox_id: id }, options);
      expect(answer).toMatchObject(expected);
    };
    await config({ policy: null, version: 0, workspace: "default" });
    const policy = { version: 1, filesystem: { read_only: ["/usr"] } };
    expect(
      await unary(client, client.UpdateConfig, { name, policy, workspace: "default" }, options),
    ).toMatchObject({ version: 1 });
    await config({ policy: { filesystem: { read_only: ["/usr"] } }, version: 1 });
    expect((await bench.get(name)).spec!.policy).toMatchObject({
      filesystem: { read_only: ["/usr"] },
    });
    await unary(
      client,
      client.ReportPolicyStatus,
      { sandbox_id: id, version: 1, status: "POLICY_STATUS_LOADED" },
      options,
    );
    expect((await bench.get(name)).status!.current_policy_version).toBe(1);
    expect(await outcomeOf(unary(client, client.UpdateConfig, { name, setting_key: "x" }, options))).toBe(
      "PERMISSION_DENIED: sandbox callers may only perform sandbox policy sync",
    );
  });
});

describe.concurrent("settings", () => {
  test("a command line that makes no sense is refused with exit code 2", async () => {
    await using lab = await Lab.open();
    const rows: [string[], string, Record<string, string>?][] = [
      [["--nope"], "error: unexpected argument '--nope' found"],
      [["serve"], "error: unrecognized subcommand 'serve'"],
      [["--port", "abc"], "error: invalid value 'abc' for '--port <PORT>': invalid digit found in string"],
      [["--port", "99999"], "error: invalid value '99999' for '--port <PORT>': 99999 is not in 0..=65535"],
      [["--port=1", "--port=2"], "error: the argument '--port <PORT>' cannot be used multiple times"],
      [["--port"], "error: a value is required for '--port <PORT>' but none was supplied"],
      [
        ["--bind-address", "here"],
        "error: invalid value 'here' for '--bind-address <BIND_ADDRESS>': invalid IP address syntax",
      ],
      [
        ["--enable-mtls-auth", "maybe"],
        "error: invalid value 'maybe' for '--enable-mtls-auth <ENABLE_MTLS_AUTH>' [possible values: true, false]",
      ],
      [
        [],
        "error: invalid value '1' for '--disable-tls' [possible values: true, false]",
        { OPENSHELL_DISABLE_TLS: "1" },
      ],
    ];
    const outcomes = await Promise.all(rows.map(([args, , env]) => lab.runToEnd(args, env)));
    expect(outcomes.map(({ message }) => message.replace(/ (Usage: |For more information).*/, ""))).toEqual(
      rows.map(([, message]) => message),
    );
    expect(new Set(outcomes.map(({ exitCode }) => exitCode))).toEqual(new Set([2]));
  });

  test("settings that contradict each other are refused with exit code 1", async () => {
    await using lab = await Lab.open();
    const plain = ["--disable-tls", "--drivers", "a"];
    const rows: [string[], string, Record<string, string>?][] = [
      [["--drivers", "a"], "--tls-cert is required when TLS is enabled (use --disable-tls to skip)"],
      [
        ["--drivers", "a", "--tls-cert", "x"],
        "--tls-key is required when TLS is enabled (use --disable-tls to skip)",
      ],
      [
        [...plain, "--tls-client-ca", "x"],
        "--disable-tls and --tls-client-ca are mutually exclusive. Client certificate verification requires that TLS be enabled.",
      ],
      [
        [...plain, "--enable-mtls-auth", "true"],
        "mTLS user authentication requires TLS. Remove --disable-tls or disable --enable-mtls-auth.",
      ],
      [
        [...plain, "--health-port", "17670"],
        "--port and --health-port must be different (both set to 17670)",
      ],
      [
        [...plain, "--grpc-rate-limit-requests", "5"],
        "gRPC rate limiting requires both --grpc-rate-limit-requests and --grpc-rate-limit-window-seconds (TOML keys grpc_rate_limit_requests and grpc_rate_limit_window_seconds) to be positive; set either value to 0 to disable",
      ],
      [[...plain, "--db-url", "mysql:x"], "configuration error: unsupported database URL scheme: mysql:x"],
      [
        [...plain, "--db-url", "sqlite:/nowhere/x.db"],
        "execution error: database error: error returned from database: (code: 14) unable to open database file",
      ],
      [
        [...plain, "--db-url", "sqlite:/tmp/x.db?foo=1"],
        "execution error: database error: error with configuration: unknown query parameter `foo` while parsing connection URL",
      ],
    ];
    const outcomes = await Promise.all(rows.map(([args, , env]) => lab.runToEnd(args, env)));
    expect(outcomes.map(({ message }) => message)).toEqual(rows.map(([, message]) => message));
    expect(new Set(outcomes.map(({ exitCode }) => exitCode))).toEqual(new Set([1]));
  });

  test("a file that is wrong is shown with the line", async () => {
    await using lab = await Lab.open();
    const rows: [string, string][] = [
      [
        "[openshell.gateway]\nbogus = 1\n",
        "TOML parse error at line 2, column 1 | 2 | bogus = 1 | ^^^^^ unknown field `bogus`, expected one of `bind_address`",
      ],
      [
        "[nope]\n",
        "TOML parse error at line 1, column 2 | 1 | [nope] | ^^^^ unknown field `nope`, expected `openshell`",
      ],
      [
        "[openshell.gateway.auth]\nx = true\n",
        "TOML parse error at line 2, column 1 | 2 | x = true | ^ unknown field `x`, expected `allow_unauthenticated_users`",
      ],
      [
        '[openshell.gateway]\nbind_address = "foo"\n',
        'TOML parse error at line 2, column 16 | 2 | bind_address = "foo" | ^^^^^ invalid socket address syntax',
      ],
      [
        '[openshell.gateway]\ncompute_drivers = "foo"\n',
        'TOML parse error at line 2, column 19 | 2 | compute_drivers = "foo" | ^^^^^ invalid type: string "foo", expected a sequence',
      ],
      [
        "[openshell.gateway]\ndisable_tls = 3\n",
        "TOML parse error at line 2, column 15 | 2 | disable_tls = 3 | ^ invalid type: integer `3`, expected a boolean",
      ],
      [
        "[openshell.gateway.tls]\n",
        "TOML parse error at line 1, column 1 | 1 | [openshell.gateway.tls] | ^^^^^^^^^^^^^^^^^^^^^^^ missing field `cert_path`",
      ],
      [
        "[openshell.gateway.gateway_jwt]\nsigning_key_path = 'x'\n",
        "TOML parse error at line 1, column 1 | 1 | [openshell.gateway.gateway_jwt]",
      ],
      ['[openshell.gateway]\nport = "x\n', "TOML parse error at line 2, column 10"],
    ];
    const outcomes = [];
    for (const [index, [text]] of rows.entries()) {
      writeFileSync(lab.path(`${index}.toml`), text);
      outcomes.push(await lab.runToEnd(["--config", lab.path(`${index}.toml`)]));
    }
    for (const [index, [, message]] of rows.entries()) {
      expect(outcomes[index]!.message).toStartWith(
        `failed to parse gateway config file '${lab.path(`${index}.toml`)}': ${message}`,
      );
      expect(outcomes[index]!.exitCode).toBe(1);
    }
  });

  test("a file that is missing, of a later version, or holds what it may not, is refused", async () => {
    await using lab = await Lab.open();
    const config = async (text: string) => {
      writeFileSync(lab.path("x.toml"), text);
      return (await lab.runToEnd(["--config", lab.path("x.toml")])).message;
    };
    expect((await lab.runToEnd(["--config", "/nope.toml"])).message).toBe(
      "failed to read gateway config file '/nope.toml': No such file or directory (os error 2)",
    );
    expect(await config("[openshell]\nversion = 2\n")).toBe(
      "unsupported gateway config version 2; this build only supports version 1",
    );
    expect(await config('[openshell.gateway]\ndatabase_url = "x"\n')).toBe(
      "`database_url` is not allowed in the gateway config file — set the OPENSHELL_DB_URL env var or pass --db-url on the command line",
    );
    expect(await config("[openshell.gateway]\ncredential_drivers = []\n")).toStartWith(
      "invalid gateway config field `openshell.gateway.credential_drivers`: omit the field",
    );
  });

  test("a missing key file and a half-written folder are named", async () => {
    await using lab = await Lab.open();
    await lab.listen();
    await Bun.file(lab.path("kid")).delete();
    expect((await lab.giveUp()).message).toBe(
      `configuration error: failed to read sandbox JWT kid from ${lab.path("kid")}: No such file or directory (os error 2)`,
    );
    const env = { OPENSHELL_LOCAL_TLS_DIR: lab.path("half") };
    await Bun.write(lab.path("half/jwt/kid"), "x");
    expect((await lab.giveUp({ env })).message).toBe(
      `partial local sandbox JWT state in ${lab.path("half")}: expected jwt/signing.pem, jwt/public.pem, and jwt/kid`,
    );
  });

  test("without user authentication users are refused, without keys supervisors are", async () => {
    await using lab = await Lab.open();
    const driver = await lab.listen();
    const strict = await lab.start({ gateway: { auth: { allow_unauthenticated_users: false } } });
    const create = unary(strict.client, strict.client.CreateSandbox, { spec: {} }, CALL);
    expect(await outcomeOf(create)).toBe("UNAUTHENTICATED: missing authorization header");
    await strict.kill();
    const keyless = await lab.start({ gateway: { gateway_jwt: undefined } });
    const { id } = await new Bench(lab, driver, keyless).create();
    const supervisor = new ScriptedSupervisor(keyless.client, id, "none");
    expect(await supervisor.end()).toMatchObject({
      code: code.PERMISSION_DENIED,
      details: "this method requires a sandbox principal",
    });
  });

  test.skipIf(isReal)("what only the real program has is refused by name", async () => {
    // The real gateway would run its own Podman driver here.
    await using lab = await Lab.open();
    for (const driver of ["podman", "docker", "kubernetes", "vm"]) {
      const { exitCode, message } = await lab.giveUp({ driver });
      expect(exitCode).toBe(1);
      expect(message).toStartWith(`this fake gateway has no in-tree compute driver '${driver}'`);
    }
    expect((await lab.giveUp({ args: ["--oidc-issuer", "https://x"] })).message).toStartWith(
      "this fake gateway has no OIDC",
    );
    expect(
      (await lab.runToEnd(["--drivers", "a", "--disable-tls", "--db-url", "postgres://x"])).message,
    ).toStartWith("this fake gateway has no Postgres");
    expect((await lab.giveUp({ env: { OPENSHELL_FAKE_DIAL_SECONDS: "soon" } })).exitCode).toBe(2);
  });
});

describe.concurrent("TLS", () => {
  test("generate-certs makes what mTLS needs: a client without a certificate is refused, one with it served", async () => {
    await using lab = await Lab.open();
    const pki = lab.path("pki");
    const certs = (...args: string[]) => lab.runToEnd(["generate-certs", "--output-dir", pki, ...args]);
    expect((await certs("--server-san", "extra.example")).exitCode).toBe(0);
    expect(statSync(`${pki}/ca.key`).mode & 0o777).toBe(0o600);
    const server = readFileSync(`${pki}/server/tls.crt`, "utf8");
    expect((await certs("--server-san", "extra.example")).exitCode).toBe(0);
    expect(readFileSync(`${pki}/server/tls.crt`, "utf8")).toBe(server);
    expect(existsSync(lab.path("config/openshell/gateways/openshell/mtls/tls.key"))).toBe(true);

    const file = (name: string) => readFileSync(`${pki}/${name}`);
    const credentials = grpc.credentials.createSsl(
      file("ca.crt"),
      file("client/tls.key"),
      file("client/tls.crt"),
    );
    const driver = await lab.listen();
    const gateway = await lab.start({
      credentials,
      gateway: {
        disable_tls: false,
        auth: { allow_unauthenticated_users: false },
        tls: {
          cert_path: `${pki}/server/tls.crt`,
          key_path: `${pki}/server/tls.key`,
          client_ca_path: `${pki}/ca.crt`,
        },
        mtls_auth: { enabled: true },
        gateway_jwt: {
          signing_key_path: `${pki}/jwt/signing.pem`,
          public_key_path: `${pki}/jwt/public.pem`,
          kid_path: `${pki}/jwt/kid`,
        },
      },
    });
    const { id } = await new Bench(lab, driver, gateway).readySandbox();
    expect(await exec(gateway, { sandbox_id: id, command: ["echo", "over mTLS"] })).toMatchObject({
      stdout: "over mTLS\n",
      exitCode: 0,
    });

    const anonymous = gateway.connect("127.0.0.1", grpc.credentials.createSsl(file("ca.crt")));
    expect(await outcomeOf(unary(anonymous, anonymous.Health, {}, { deadlineMs: 3_000 }))).toMatch(
      /^(UNAVAILABLE|DEADLINE_EXCEEDED)/,
    );
    anonymous.close();

    await Bun.file(`${pki}/ca.key`).delete();
    const partial = await certs();
    expect(partial.exitCode).toBe(1);
    expect(partial.message).toBe(
      `partial PKI state in ${pki}: some files exist but not all. Recover with: rm -rf ${pki} (the gateway will regenerate on next start)`,
    );
  });
});

test("the program says who it is", async () => {
  await using lab = await Lab.open();
  expect((await lab.runToEnd(["--version"])).stdout).toMatch(/^openshell-gateway \d+\.\d+\.\d+/);
  expect((await lab.runToEnd(["--help"])).stdout).toContain("--compute-driver-socket");
});
