// SPDX-License-Identifier: Apache-2.0

/**
 * The gateway under test, the one that the settings name or the fake, as a process in a private folder.
 *
 * The test process starts it itself: the driver that it dials lives there, so neither outlives the other. Should the
 * test process be killed, its guard sweeps the run (see `guard`).
 */
import { mkdirSync, openSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import * as grpc from "@grpc/grpc-js";
import { stringify } from "smol-toml";
import { eventually, HarnessError, parts, within } from "../../harness.ts";
import { readSettings } from "../../harness/base/settings.ts";
import { BUN, keeperEnvironment } from "../../harness/base/environment.ts";
import { readable, readableWhole } from "../../harness/base/readable.ts";
import { checkParts, describeParts, type Parts } from "../../harness/runtime/places.ts";
import { urlPath } from "../../harness/base/machine.ts";
import { KEEPER_PID, Run } from "../../harness/runtime/run.ts";
import { cleanEnvironment } from "../../harness/runtime/process.ts";
import { compiledFake } from "../../harness/runtime/programs.ts";
import { shortCommand } from "../../harness/base/short-command.ts";
import { freePort, writeSigningKeys } from "../../harness/runtime/stack.ts";
import { openshell, unary } from "../../proto/contract.ts";
import { raisedWindows } from "../../proto/raised-windows.ts";
import type { OpenShellClient } from "../../proto/v0.0/types/openshell/v1/OpenShell.ts";
import { type Script, ScriptedDriver } from "./scripted-driver.ts";

/** Whether the gateway under test is the real one. */
export const isReal = parts().gateway.real;

/** The name under which the scripted driver is configured, unless a scenario says otherwise. */
export const DRIVER_NAME = "external-test";

/** The real gateway waits for its driver for 30 s. */
const START_DEADLINE_MS = 45_000;
/** Above that, and above what a gateway takes to stop its sandboxes. */
const RUN_DEADLINE_MS = 45_000;
const STOP_DEADLINE_MS = 10_000;
const DRAIN_MS = 2_000;

// The run

const { settings } = readSettings();
let prepared: Promise<{ run: Run; command: string[] }> | undefined;

/** The run of this test process, and the gateway's command line; the first who asks has it announced. */
const prepare = () =>
  (prepared ??= (async () => {
    const scripted = { real: false, label: "scripted", command: [] };
    const none = { real: false, label: "none", command: [] };
    const found: Parts = { gateway: parts().gateway, driver: scripted, engine: none, supervisor: scripted };
    console.log(`gateway-adapter: ${describeParts(await checkParts(found, settings))}`);
    const run = Run.create(settings);
    mkdirSync(run.folder, { recursive: true, mode: 0o700 });
    writeFileSync(join(run.folder, KEEPER_PID), String(process.pid));
    guard(run);
    const { command } = isReal ? parts().gateway : await compiledFake("gateway", run);
    return { run, command };
  })());

/**
 * Sees to it that nothing of this run outlives the test process, however that ends. A shell, twice removed so that
 * `bun test` does not end it with its children, waits for the end of a pipe that only this process holds open; what is
 * still there then it has swept. Until then the control socket tells every other sweep that the run lives.
 */
function guard(run: Run): void {
  const alive = createServer((socket) => socket.on("error", () => {}).end("{}\n"));
  alive.listen(run.controlSocket).unref();
  const pipe = join(run.folder, "guard");
  if (!Bun.spawnSync(["mkfifo", pipe]).success) throw new HarnessError(`mkfifo: ${pipe} cannot be made`);
  openSync(pipe, "r+");
  // The shell holds the pipe, too, until the reader is there.
  const script = `exec 3<>"$0/guard"
    { trap "" INT TERM HUP; exec 3>&-; read -r _; rm -f "$0/keeper.sock" "$0/guard"
      [ "$(ls -A "$0")" = ${KEEPER_PID} ] && rm "$0/${KEEPER_PID}" && rmdir "$0" || exec "$@" sweep --guard --run "$0"; } <"$0/guard" >/dev/null 2>&1 &`;
  const harness = join(import.meta.dir, "..", "..", "harness.ts");
  const argv = ["sh", "-c", script, run.folder, ...BUN, harness];
  const env = keeperEnvironment(readSettings().settings);
  Bun.spawnSync(argv, { env, stdin: "ignore", stdout: "ignore", stderr: "inherit" });
}

/** Nobody serves anything here: whoever holds a port of this address has it for its gateways, in all test processes. */
const LOCKS = "127.99.99.99";

/**
 * A port for a gateway, for the life of this process. Two gateways that are given the same one are worse than a failed
 * start: the client of the second finds the first, and is content.
 */
export async function reservePort(): Promise<number> {
  return eventually(
    async () => {
      const port = await freePort();
      await new Promise<void>((done, failed) => {
        const lock = createServer().once("error", failed);
        lock.listen(port, LOCKS, done).unref();
      });
      return port;
    },
    { what: "reserve a port" },
  );
}

// A folder with a gateway

export interface GatewayOptions {
  /** The configured driver name, and that of its table. */
  driver?: string;
  table?: string;
  /** The content of that table, when it is not the `socket_path` of the scripted driver. */
  driverTable?: Record<string, unknown>;
  /** Laid over the usual `[openshell.gateway]`; a key that is undefined is left out. */
  gateway?: Record<string, unknown>;
  args?: string[];
  env?: Record<string, string>;
  port?: number;
  /** Credentials of a client that is to speak TLS. */
  credentials?: grpc.ChannelCredentials;
}

/** How a gateway that was run to its end ended. */
export interface Outcome {
  exitCode: number;
  stdout: string;
  stderr: string;
  /** Standard error without the frame around the message, on one line. */
  message: string;
}

let labs = 0;

/** A private folder with keys and a database, in which gateways and drivers of one scenario live. */
export class Lab {
  readonly socketPath: string;
  #closers: (() => unknown)[] = [];

  private constructor(
    readonly folder: string,
    readonly run: Run,
    readonly command: string[],
  ) {
    this.socketPath = this.path("driver.sock");
    writeSigningKeys(folder);
  }

  static async open(): Promise<Lab> {
    const { run, command } = await prepare();
    const folder = join(run.folder, String(++labs));
    mkdirSync(folder, { mode: 0o700 });
    return new Lab(folder, run, command);
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  get databasePath(): string {
    return this.path("gateway.db");
  }

  /** Serves the driver contract where gateways of this lab look for it. */
  async listen(script: Script = {}, path = this.socketPath): Promise<ScriptedDriver> {
    const driver = await ScriptedDriver.listen(path, script);
    this.onClose(() => driver.close());
    return driver;
  }

  /** Writes a configuration, and returns the arguments that name it. */
  async configure(options: GatewayOptions = {}) {
    const { driver = DRIVER_NAME, table = driver, port = await reservePort() } = options;
    const healthPort = await reservePort();
    const gateway: Record<string, unknown> = {
      bind_address: `127.0.0.1:${port}`,
      health_bind_address: `127.0.0.1:${healthPort}`,
      compute_drivers: [driver],
      disable_tls: true,
      auth: { allow_unauthenticated_users: true },
      gateway_jwt: {
        signing_key_path: this.path("signing.pem"),
        public_key_path: this.path("public.pem"),
        kid_path: this.path("kid"),
        gateway_id: "lab",
      },
      ...options.gateway,
    };
    for (const [key, value] of Object.entries(gateway)) if (value === undefined) delete gateway[key];
    const drivers = { [table]: options.driverTable ?? { socket_path: this.socketPath } };
    const config = this.path(`gateway-${port}.toml`);
    writeFileSync(config, stringify({ openshell: { version: 1, gateway, drivers } }));
    const database = `sqlite:${urlPath(this.databasePath)}?mode=rwc`;
    const args = ["--config", config, "--db-url", database, ...(options.args ?? [])];
    return { args, config, port, healthPort };
  }

  /** Runs the gateway's program to its end. @throws HarnessError when it does not end. */
  async runToEnd(args: string[], env: Record<string, string> = {}): Promise<Outcome> {
    const ended = await shortCommand([...this.command, ...args], {
      ...this.#surroundings(env),
      deadlineMs: RUN_DEADLINE_MS,
    }).catch((error: Error) => {
      throw new HarnessError(`The gateway's end (arguments: ${args.join(" ")}): ${readable(error.message)}`);
    });
    const [stdout, stderr] = [ended.stdout, ended.stderr].map((output) => readable(output.toString()));
    return { exitCode: ended.exitCode ?? -1, stdout: stdout!, stderr: stderr!, message: unframed(stderr!) };
  }

  /** Runs a gateway that is expected to give up. */
  async giveUp(options: GatewayOptions = {}): Promise<Outcome> {
    const { args } = await this.configure(options);
    return this.runToEnd(args, options.env);
  }

  /** Starts a gateway, without waiting for anything. */
  async launch(options: GatewayOptions = {}): Promise<GatewayProcess> {
    const { args, port, healthPort } = await this.configure(options);
    const gateway = new GatewayProcess(this.#spawn(args, options.env), port, healthPort, options.credentials);
    this.onClose(() => gateway.kill());
    return gateway;
  }

  /** Starts a gateway, and waits until it answers Health. */
  async start(options: GatewayOptions = {}): Promise<GatewayProcess> {
    const gateway = await this.launch(options);
    await gateway.answering();
    return gateway;
  }

  onClose(closer: () => unknown): void {
    this.#closers.push(closer);
  }

  async close(): Promise<void> {
    for (const closer of this.#closers.toReversed()) await closer();
    rmSync(this.folder, { recursive: true, force: true });
  }

  [Symbol.asyncDispose] = () => this.close();

  #surroundings = (env: Record<string, string> = {}) => ({
    env: { ...cleanEnvironment(this.run, this.folder), ...env },
    cwd: this.folder,
  });

  #spawn(args: string[], env: Record<string, string> = {}) {
    return Bun.spawn([...this.command, ...args], {
      ...this.#surroundings(env),
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
    });
  }
}

/** What a gateway printed as its last words, without the frame, on one line. */
export const unframed = (text: string): string =>
  readable(text)
    .replace(/^Error:\s+×\s*/m, "")
    // The frame breaks lines after spaces, and after hyphens and slashes inside words.
    .replaceAll(/([-/])\n\s{0,40}│ ?/g, "$1")
    .replaceAll(/\n\s{0,40}│ ?/g, " ")
    .replaceAll(/\s+/g, " ")
    .trim();

// A running gateway

/** What is kept of what it prints, in characters. */
const LONGEST_LOG = 1_000_000;

/** A gateway that runs, and a client of it. */
export class GatewayProcess {
  readonly client: OpenShellClient;
  readonly #clients: OpenShellClient[] = [];
  readonly #collected: Promise<unknown>;
  #output = "";

  constructor(
    readonly child: Bun.Subprocess<"ignore", "pipe", "pipe">,
    readonly port: number,
    readonly healthPort: number,
    credentials = grpc.credentials.createInsecure(),
  ) {
    this.client = this.connect("127.0.0.1", credentials);
    this.#collected = Promise.all([this.#collect(child.stdout), this.#collect(child.stderr)]);
  }

  async #collect(stream: ReadableStream<Uint8Array>): Promise<void> {
    const decoder = new TextDecoder();
    for await (const chunk of stream)
      this.#output = (this.#output + decoder.decode(chunk, { stream: true })).slice(-LONGEST_LOG);
  }

  /** One more client, of this or another address of the gateway. It is closed with the gateway. */
  connect(host: string, credentials = grpc.credentials.createInsecure()): OpenShellClient {
    const client = new (openshell().OpenShell)(`${host}:${this.port}`, raisedWindows(credentials), {
      "grpc.initial_reconnect_backoff_ms": 20,
      "grpc.max_reconnect_backoff_ms": 20,
      // Bun verifies no certificate against a bare address.
      "grpc.ssl_target_name_override": "localhost",
      "grpc.default_authority": "localhost",
      "grpc.use_local_subchannel_pool": 1,
    });
    this.#clients.push(client);
    return client;
  }

  /** All that it printed so far, without colours. */
  get log(): string {
    return readableWhole(this.#output);
  }

  /** Waits until it answers Health. @throws HarnessError with its last words when it ends instead. */
  async answering(client = this.client): Promise<void> {
    const answers = async () => {
      await unary(client, client.Health, {}, { deadlineMs: 1_000 });
      // Its last step before it answers; so it is this gateway, and no other on the same port.
      if (!this.log.includes("Health server listening")) throw new Error("it is not ready");
    };
    await eventually(answers, {
      what: "the gateway to answer Health",
      deadlineMs: START_DEADLINE_MS,
      failed: () => this.ended && `${this.ended}\n${this.log}`,
    });
  }

  /** The status with which its health port answers. @throws TypeError while nobody listens there. */
  async health(path: string): Promise<number> {
    const url = `http://127.0.0.1:${this.healthPort}${path}`;
    return (await fetch(url, { signal: AbortSignal.timeout(2_000), keepalive: false })).status;
  }

  /** How it ended, such as "exit code 0" or "signal SIGTERM"; undefined while it runs. */
  get ended(): string | undefined {
    const { exitCode, signalCode } = this.child;
    if (signalCode) return `signal ${signalCode}`;
    return exitCode === null ? undefined : `exit code ${exitCode}`;
  }

  /** Ends it with a signal. Resolves with how it ended. @throws HarnessError when it does not. */
  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<string> {
    this.child.kill(signal);
    this.#hangUp();
    try {
      await within(STOP_DEADLINE_MS, `The gateway's end after ${signal}`, this.child.exited);
      // What it left in the background may hold its output open.
      await within(DRAIN_MS, "the rest of its output", this.#collected).catch(() => {});
    } catch (error) {
      throw new HarnessError(`${(error as Error).message}\n${this.log.slice(-2_000)}`);
    }
    return this.ended!;
  }

  async kill(): Promise<void> {
    this.child.kill("SIGKILL");
    this.#hangUp();
    await this.child.exited;
  }

  #hangUp(): void {
    for (const client of this.#clients.splice(0)) client.close();
  }
}
