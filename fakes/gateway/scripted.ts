// SPDX-License-Identifier: Apache-2.0

/**
 * For tests: a gateway process, real (OPENSHELL_GATEWAY_BIN) or fake, between a driver that answers what a test scripts
 * and supervisors that a test opens and closes. Whatever they start ends with `close`.
 */
import { generateKeyPairSync } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Duplex } from "node:stream";
import * as grpc from "@grpc/grpc-js";
import { stringify } from "smol-toml";
import { Server as SshServer, type Connection, type ServerChannel } from "ssh2";
import { computeDriver, openshell, unary } from "../../proto/contract.ts";
import type { ComputeDriverHandlers } from "../../proto/v0.0/types/openshell/compute/v1/ComputeDriver.ts";
import type { DriverCondition } from "../../proto/v0.0/types/openshell/compute/v1/DriverCondition.ts";
import type { DriverSandbox__Output } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import type { DriverSandboxStatus } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandboxStatus.ts";
import type { WatchSandboxesEvent } from "../../proto/v0.0/types/openshell/compute/v1/WatchSandboxesEvent.ts";
import type { GatewayMessage__Output } from "../../proto/v0.0/types/openshell/v1/GatewayMessage.ts";
import type { OpenShellClient } from "../../proto/v0.0/types/openshell/v1/OpenShell.ts";
import type { SupervisorMessage } from "../../proto/v0.0/types/openshell/v1/SupervisorMessage.ts";

const REAL_BINARY = process.env.OPENSHELL_GATEWAY_BIN;

/** Whether the tests run against the real gateway. */
export const isReal = REAL_BINARY !== undefined;

const COMMAND = REAL_BINARY ? [REAL_BINARY] : [process.execPath, join(import.meta.dir, "..", "gateway.ts")];
const DEADLINE = { deadlineMs: 10_000 };

/**
 * Repeats `look` until it returns something other than undefined.
 * @throws Error with what it last saw, once `ms` have passed
 */
export async function eventually<Seen>(
  what: string,
  look: () => Promise<Seen | undefined> | Seen | undefined,
  { ms = 8_000, lastSeen = () => "nothing" }: { ms?: number; lastSeen?: () => unknown } = {},
): Promise<Seen> {
  for (const deadline = Date.now() + ms; ; await Bun.sleep(10)) {
    const seen = await look();
    if (seen !== undefined) return seen;
    if (Date.now() > deadline)
      throw new Error(`Expected ${what} within ${ms} ms, last seen: ${Bun.inspect(lastSeen())}`);
  }
}

/** A port that nobody listens on. */
export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer().once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address() as { port: number };
      server.close(() => resolve(port));
    });
  });
}

// Driver

type Method = Exclude<keyof ComputeDriverHandlers & string, "WatchSandboxes">;
type Answer = (request: never) => object | Promise<object>;

/** An error answer: `driver.answers.StopSandbox = fails(grpc.status.INTERNAL, "no")`. */
export const fails =
  (code: grpc.status, details: string): Answer =>
  () =>
    Promise.reject({ code, details });

/** Never answers. */
export const hangs: Answer = () => new Promise(() => {});

const METHODS: Method[] = [
  "GetCapabilities",
  "GetGatewayListenerRequirements",
  "ValidateSandboxCreate",
  "CreateSandbox",
  "GetSandbox",
  "ListSandboxes",
  "StopSandbox",
  "StartSandbox",
  "DeleteSandbox",
  "EnsureWorkspace",
  "DeleteWorkspace",
];

export class ScriptedDriver {
  /** Every call, in the order of arrival. */
  readonly calls: { method: string; request: Record<string, unknown>; at: number }[] = [];
  readonly answers: Partial<Record<Method, Answer>> = {};
  readonly created = new Map<string, DriverSandbox__Output>();
  #watches = new Set<grpc.ServerWritableStream<unknown, WatchSandboxesEvent>>();
  #server = new grpc.Server();

  private constructor(readonly path: string) {}

  static async listen(path: string, answers: Partial<Record<Method, Answer>> = {}): Promise<ScriptedDriver> {
    const driver = new ScriptedDriver(path);
    Object.assign(driver.answers, answers);
    const handlers: grpc.UntypedServiceImplementation = {
      WatchSandboxes: (call: grpc.ServerWritableStream<unknown, WatchSandboxesEvent>) => {
        driver.calls.push({ method: "WatchSandboxes", request: {}, at: performance.now() });
        call.on("error", () => {});
        call.on("cancelled", () => driver.#watches.delete(call));
        driver.#watches.add(call);
        call.sendMetadata(new grpc.Metadata());
      },
    };
    for (const method of METHODS) {
      const serve: grpc.handleUnaryCall<never, object> = (call, callback) =>
        void driver.#serve(method, call.request, callback);
      handlers[method] = serve as grpc.UntypedHandleCall;
    }
    driver.#server.addService(computeDriver().ComputeDriver.service, handlers);
    await new Promise<void>((resolve, reject) =>
      driver.#server.bindAsync(`unix:${path}`, grpc.ServerCredentials.createInsecure(), (error) =>
        error ? reject(error) : resolve(),
      ),
    );
    return driver;
  }

  async #serve(method: Method, request: never, callback: grpc.sendUnaryData<object>): Promise<void> {
    this.calls.push({ method, request, at: performance.now() });
    try {
      callback(null, await (this.answers[method] ?? this.#usual(method))(request));
    } catch (error) {
      callback(error as grpc.ServiceError);
    }
  }

  /** A driver that does as it is told. */
  #usual(method: Method): Answer {
    const usual: Partial<
      Record<Method, (request: { sandbox: DriverSandbox__Output; sandbox_id: string }) => object>
    > = {
      GetCapabilities: () => ({
        driver_name: "scripted",
        driver_version: "1.2.3",
        default_image: "image:default",
        gateway_manages_lifecycle: true,
      }),
      CreateSandbox: ({ sandbox }) => {
        this.created.set(sandbox.id, sandbox);
        return {};
      },
      GetSandbox: ({ sandbox_id }) => ({
        sandbox: this.snapshot(sandbox_id, { conditions: [ready("True")] }),
      }),
      DeleteSandbox: ({ sandbox_id }) => {
        this.send({ deleted: { sandbox_id } });
        return { deleted: true };
      },
    };
    return (usual[method] ?? (() => ({}))) as Answer;
  }

  called = (method: string) => this.calls.filter((call) => call.method === method);
  watching = () => this.#watches.size > 0;

  /** A sandbox as this driver reports it. */
  snapshot(id: string, status: DriverSandboxStatus | null, name = this.created.get(id)?.name ?? "unknown") {
    return { id, name, workspace: "default", status };
  }

  /** Sends an event to every watcher. */
  send(event: WatchSandboxesEvent): void {
    for (const watch of this.#watches) watch.write(event);
  }

  endWatches(): void {
    for (const watch of this.#watches) watch.end();
    this.#watches.clear();
  }

  close(): void {
    this.#server.forceShutdown();
    rmSync(this.path, { force: true });
  }
}

export const ready = (status: string, reason = "", message = ""): DriverCondition => ({
  type: "Ready",
  status,
  reason,
  message,
});

// Supervisor

/** A supervisor's session, and an SSH server behind its relays that runs commands with `sh -c` on this machine. */
export class ScriptedSupervisor {
  readonly messages: GatewayMessage__Output[] = [];
  /** Commands as they came over SSH, with the terminal size if there was a terminal. */
  readonly commands: { command: string; sizes: string[]; closed: boolean }[] = [];
  ended: grpc.StatusObject | undefined;
  /** How a relay is answered: served, refused, or not at all. */
  relays: "served" | "refused" | "ignored" = "served";
  #call: grpc.ClientDuplexStream<SupervisorMessage, GatewayMessage__Output>;
  #relays: { cancel(): void }[] = [];

  constructor(
    private readonly client: OpenShellClient,
    private readonly id: string,
    private readonly token: string,
    instanceId = "instance-1",
  ) {
    this.#call = client.ConnectSupervisor(this.metadata());
    this.#call.on("error", () => {});
    this.#call.on("status", (status: grpc.StatusObject) => (this.ended = status));
    this.#call.on("data", (message: GatewayMessage__Output) => {
      this.messages.push(message);
      if (message.relay_open) this.#openRelay(message.relay_open.channel_id);
    });
    this.#call.write({ hello: { sandbox_id: id, instance_id: instanceId } });
  }

  metadata(): grpc.Metadata {
    const metadata = new grpc.Metadata();
    metadata.set("authorization", `Bearer ${this.token}`);
    return metadata;
  }

  accepted = () =>
    eventually(
      `a session for ${this.id}`,
      () => this.messages.find(({ payload }) => payload === "session_accepted"),
      {
        lastSeen: () => this.ended,
      },
    );

  close(): void {
    this.#call.end();
  }

  /** Breaks off everything at once. */
  die(): void {
    for (const call of [this.#call, ...this.#relays]) call.cancel();
  }

  #openRelay(channelId: string): void {
    if (this.relays === "ignored") return;
    const success = this.relays === "served";
    this.#call.write({
      relay_open_result: { channel_id: channelId, success, error: success ? "" : "no SSH here" },
    });
    if (!success) return;
    const call = this.client.RelayStream(this.metadata());
    this.#relays.push(call);
    call.write({ init: { channel_id: channelId } });
    const stream = new Duplex({
      read() {},
      write(data: Buffer, _encoding, done) {
        call.write({ data });
        done();
      },
      final(done) {
        call.end();
        done();
      },
    });
    call.on("data", ({ data }: { data?: Buffer }) => data && stream.push(data));
    call.on("end", () => stream.push(null));
    call.on("error", () => stream.destroy());
    const server = new SshServer({ hostKeys: [hostKey()] }, (connection) => this.#serveSsh(connection));
    server.injectSocket(stream as never);
  }

  #serveSsh(connection: Connection): void {
    connection.on("error", () => {});
    connection.on("authentication", (context) =>
      context.method === "none" && context.username === "sandbox" ? context.accept() : context.reject(),
    );
    connection.on("session", (accept) => {
      const session = accept();
      const sizes: string[] = [];
      session.on("pty", (accepted, _reject, info) => {
        sizes.push(`${info.cols}x${info.rows}`);
        accepted?.();
      });
      session.on("window-change", (accepted, _reject, info) => {
        sizes.push(`${info.cols}x${info.rows}`);
        accepted?.();
      });
      session.on("exec", (accepted, _reject, { command }) => {
        const record = { command, sizes, closed: false };
        this.commands.push(record);
        const channel = accepted();
        channel.on("close", () => (record.closed = true));
        void run(command, channel);
      });
    });
  }
}

async function run(command: string, channel: ServerChannel): Promise<void> {
  const child = Bun.spawn(["sh", "-c", command], {
    stdin: "pipe",
    stdout: "pipe",
    stderr: "pipe",
    detached: true,
  });
  channel.on("data", (data: Buffer) => {
    child.stdin.write(data);
    void child.stdin.flush();
  });
  channel.on("end", () => void child.stdin.end());
  channel.on("close", () => {
    // The whole group: a shell that dies leaves its children.
    if (child.exitCode === null) process.kill(-child.pid, "SIGKILL");
  });
  const copy = async (from: ReadableStream<Uint8Array>, to: { write(data: Uint8Array): unknown }) => {
    for await (const data of from) to.write(data);
  };
  await Promise.all([copy(child.stdout, channel), copy(child.stderr, channel.stderr)]);
  channel.exit(await child.exited);
  channel.end();
}

let key: string | undefined;
const hostKey = () =>
  (key ??= generateKeyPairSync("rsa", { modulusLength: 2048 })
    .privateKey.export({ type: "pkcs1", format: "pem" })
    .toString());

// Gateway

export interface GatewayOptions {
  /** The configured driver name, and that of its table. */
  driver?: string;
  table?: string;
  socketPath?: string;
  /** Merged over the usual `[openshell.gateway]`. */
  gateway?: object;
  args?: string[];
  env?: Record<string, string>;
  port?: number;
  /** Credentials of a client that is to speak TLS. */
  credentials?: grpc.ChannelCredentials;
}

/** A private folder with keys, in which gateways and drivers of one test live. */
export class Lab {
  readonly folder = mkdtempSync(join(tmpdir(), "gw-"));
  readonly socketPath = join(this.folder, "driver.sock");
  #closers: (() => unknown)[] = [];

  constructor() {
    const { privateKey, publicKey } = generateKeyPairSync("ed25519");
    // ring, in the real gateway, takes PKCS#8 with or without the public key.
    writeFileSync(join(this.folder, "signing.pem"), privateKey.export({ type: "pkcs8", format: "pem" }));
    writeFileSync(join(this.folder, "public.pem"), publicKey.export({ type: "spki", format: "pem" }));
    writeFileSync(join(this.folder, "kid"), "key-1");
  }

  path = (name: string) => join(this.folder, name);

  /** Runs the gateway's program to its end. */
  async run(args: string[], env: Record<string, string> = {}): Promise<Outcome> {
    const child = this.#spawn(args, env);
    const output = Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
    const timer = setTimeout(() => child.kill("SIGKILL"), 45_000);
    const exitCode = await child.exited;
    clearTimeout(timer);
    const [stdout, stderr] = await output;
    return { exitCode, stdout: plain(stdout), stderr: plain(stderr), message: unframed(stderr) };
  }

  /** Writes a configuration and returns the arguments that name it. */
  async configure(
    options: GatewayOptions = {},
  ): Promise<{ args: string[]; port: number; healthPort: number }> {
    const [port, healthPort] = [options.port ?? (await freePort()), await freePort()];
    const driver = options.driver ?? "external-test";
    const socket = { socket_path: options.socketPath ?? this.socketPath };
    const file = {
      openshell: {
        version: 1,
        gateway: {
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
        },
        drivers: { [options.table ?? driver]: socket },
      },
    };
    const config = this.path(`gateway-${port}.toml`);
    writeFileSync(config, stringify(file));
    const database = `sqlite:${this.path("gateway.db")}?mode=rwc`;
    return { args: ["--config", config, "--db-url", database, ...(options.args ?? [])], port, healthPort };
  }

  /** Runs a gateway that is expected to give up. */
  async fail(options: GatewayOptions = {}): Promise<Outcome> {
    const { args } = await this.configure(options);
    return await this.run(args, options.env);
  }

  /** Starts a gateway and waits until it answers Health. */
  async start(options: GatewayOptions = {}): Promise<Gateway> {
    const { args, port, healthPort } = await this.configure(options);
    const gateway = new Gateway(this.#spawn(args, options.env), port, healthPort, options.credentials);
    this.onClose(() => gateway.kill());
    await gateway.answering();
    return gateway;
  }

  async listen(
    answers: Partial<Record<Method, Answer>> = {},
    path = this.socketPath,
  ): Promise<ScriptedDriver> {
    const driver = await ScriptedDriver.listen(path, answers);
    this.onClose(() => driver.close());
    return driver;
  }

  onClose(closer: () => unknown): void {
    this.#closers.push(closer);
  }

  async close(): Promise<void> {
    for (const closer of this.#closers.toReversed()) await closer();
    rmSync(this.folder, { recursive: true, force: true });
  }

  [Symbol.asyncDispose] = () => this.close();

  #spawn(args: string[], env: Record<string, string> = {}) {
    const { folder } = this;
    return Bun.spawn([...COMMAND, ...args], {
      env: {
        PATH: process.env.PATH ?? "",
        HOME: folder,
        XDG_CONFIG_HOME: folder,
        XDG_STATE_HOME: folder,
        ...env,
      },
      cwd: folder,
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
    });
  }
}

export interface Outcome {
  exitCode: number;
  stdout: string;
  stderr: string;
  /** Standard error without the frame around the message. */
  message: string;
}

const plain = (text: string) => Bun.stripANSI(text);
const unframed = (text: string) =>
  plain(text)
    .replace(/^Error:\s+×\s*/m, "")
    // The frame breaks lines after spaces, and after hyphens and slashes inside words.
    .replaceAll(/([-/])\n\s*│ ?/g, "$1")
    .replaceAll(/\n\s*│ ?/g, " ")
    .replaceAll(/\s+/g, " ")
    .trim();

export class Gateway {
  readonly client: OpenShellClient;
  #output = "";

  constructor(
    readonly child: Bun.Subprocess<"ignore", "pipe", "pipe">,
    readonly port: number,
    readonly healthPort: number,
    credentials = grpc.credentials.createInsecure(),
  ) {
    this.client = this.connect("127.0.0.1", credentials);
    void this.#collect(child.stdout);
    void this.#collect(child.stderr);
  }

  async #collect(stream: ReadableStream<Uint8Array>): Promise<void> {
    const decoder = new TextDecoder();
    for await (const chunk of stream) this.#output += plain(decoder.decode(chunk, { stream: true }));
  }

  connect(host: string, credentials = grpc.credentials.createInsecure()): OpenShellClient {
    return new (openshell().OpenShell)(`${host}:${this.port}`, credentials, {
      "grpc.initial_reconnect_backoff_ms": 20,
      "grpc.max_reconnect_backoff_ms": 20,
      // Bun verifies no certificate against a bare address.
      "grpc.ssl_target_name_override": "localhost",
      "grpc.default_authority": "localhost",
      "grpc.use_local_subchannel_pool": 1,
    });
  }

  log = () => this.#output;

  async answering(): Promise<void> {
    let last: unknown;
    await eventually(
      "Health to be answered",
      async () => {
        if (this.child.exitCode !== null)
          throw new Error(`gateway exited ${this.child.exitCode}: ${this.log()}`);
        try {
          return await unary(this.client, this.client.Health, {}, { deadlineMs: 1_000 });
        } catch (error) {
          last = error;
          return undefined;
        }
      },
      { ms: 45_000, lastSeen: () => last },
    );
  }

  /** SIGTERM, and the exit code. */
  async stop(): Promise<number> {
    this.client.close();
    this.child.kill("SIGTERM");
    const timer = setTimeout(() => this.child.kill("SIGKILL"), 8_000);
    const exitCode = await this.child.exited;
    clearTimeout(timer);
    return exitCode;
  }

  async kill(): Promise<void> {
    this.client.close();
    this.child.kill("SIGKILL");
    await this.child.exited;
  }

  unary: typeof unary = (client, method, request, options = DEADLINE) =>
    unary(client, method, request, options);
}
