// SPDX-License-Identifier: Apache-2.0

/**
 * The supervisor at work: the gateway's session and relays, the main process, and commands over SSH.
 */
import { dlopen } from "bun:ffi";
import { spawn } from "node:child_process";
import { chownSync, existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { connect, isIP, type Socket } from "node:net";
import { constants } from "node:os";
import { Duplex, type Readable, type Writable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import * as grpc from "@grpc/grpc-js";
import type { Connection, PseudoTtyInfo, Server, ServerChannel, Session } from "ssh2";
import { codeName, openshell, unary } from "../../proto/contract.ts";
import { raisedWindows } from "../../proto/raised-windows.ts";
import type { GatewayMessage__Output } from "../../proto/v0.0/types/openshell/v1/GatewayMessage.ts";
import type { OpenShellClient } from "../../proto/v0.0/types/openshell/v1/OpenShell.ts";
import type { PushSandboxLogsRequest } from "../../proto/v0.0/types/openshell/v1/PushSandboxLogsRequest.ts";
import type { RelayFrame, RelayFrame__Output } from "../../proto/v0.0/types/openshell/v1/RelayFrame.ts";
import type { RelayOpen__Output } from "../../proto/v0.0/types/openshell/v1/RelayOpen.ts";
import type { SandboxLogLine } from "../../proto/v0.0/types/openshell/v1/SandboxLogLine.ts";
import type { SupervisorMessage } from "../../proto/v0.0/types/openshell/v1/SupervisorMessage.ts";
import type { TcpRelayTarget__Output } from "../../proto/v0.0/types/openshell/v1/TcpRelayTarget.ts";
import { rooted, shell, words, type Settings } from "./settings.ts";

/** Times in milliseconds. The real supervisor retries a session after 1 s to 30 s. */
const RETRY = { first: 100, max: 2_000 };
const REPORT_RETRY = { first: 250, max: 2_000 };
const ACCEPT_DEADLINE = 10_000;
const REPORT_DEADLINE = 5_000;
/** What a process may still write after it ended, while a background child holds its output open. */
const DRAIN = 2_000;
/** Between SIGTERM and SIGKILL when the supervisor stops. */
const STOP_GRACE = 500;
const LOG_FLUSH = 100;

// ------------------------------------------------------------------------------------------------ Logs

const LEVELS = ["trace", "debug", "info", "warn", "error"];

/**
 * The supervisor's own lines: on stderr from `--log-level` on, and from info on to the gateway, which serves them with
 * the source "sandbox". Output of the user's processes is not among them, as with the real program.
 */
class Log {
  #gateway: Gateway | undefined;
  #lines: SandboxLogLine[] = [];
  #call: grpc.ClientWritableStream<PushSandboxLogsRequest> | undefined;
  #timer: Timer | undefined;

  constructor(
    readonly sandboxId: string,
    readonly level: string,
  ) {}

  write(
    level: "debug" | "info" | "warn" | "error",
    message: string,
    fields: Record<string, string> = {},
  ): void {
    const time = Date.now();
    if (LEVELS.indexOf(level) >= LEVELS.indexOf(this.level.toLowerCase())) {
      const details = Object.entries(fields).map(([name, value]) => ` ${name}=${value}`);
      console.error(`${new Date(time).toISOString()} ${level.toUpperCase()} ${message}${details.join("")}`);
    }
    if (level === "debug" || this.#lines.length >= 200) return;
    this.#lines.push({
      sandbox_id: this.sandboxId,
      timestamp_ms: time,
      level: level.toUpperCase(),
      target: "openshell_sandbox",
      message,
      source: "sandbox",
      fields,
    });
    this.#timer ??= setTimeout(() => this.flush(), LOG_FLUSH);
    this.#timer.unref();
  }

  /** From now on lines go to the gateway too, those that wait first. */
  pushTo(gateway: Gateway): void {
    this.#gateway = gateway;
    this.flush();
  }

  /** Sends what waits. A lost line is not worth an error: logs never hold the sandbox up. */
  flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (!this.#gateway || this.#lines.length === 0) return;
    this.#call ??= this.#gateway.client.pushSandboxLogs(
      this.#gateway.metadata(),
      () => (this.#call = undefined),
    );
    this.#call.write({ sandbox_id: this.sandboxId, logs: this.#lines.splice(0) });
  }
}

// ------------------------------------------------------------------------------------------------ Gateway

/** The way to the gateway: one connection for the session, its relays, the logs and the report. */
class Gateway {
  readonly client: OpenShellClient;
  #token: string;

  constructor(settings: Settings) {
    const { protocol, hostname, port } = new URL(settings.endpoint);
    const host = settings.hosts.get(hostname) ?? hostname;
    const name = settings.serverName || hostname;
    const options: grpc.ClientOptions = {
      "grpc.initial_reconnect_backoff_ms": RETRY.first,
      "grpc.max_reconnect_backoff_ms": RETRY.max,
      "grpc.keepalive_time_ms": 10_000,
      "grpc.keepalive_timeout_ms": 20_000,
      "grpc.service_config_disable_resolution": 1,
      // HTTP_PROXY and the like belong to the user's processes.
      "grpc.enable_http_proxy": 0,
    };
    const read = (path: string) => readFileSync(rooted(settings, path));
    const secure = protocol === "https:";
    // Bun refuses an IP address as TLS server name, and the name in the certificate may not be the one dialled.
    if (secure) options["grpc.ssl_target_name_override"] = isIP(name) ? "localhost" : name;
    if (secure) options["grpc.default_authority"] = isIP(name) ? "localhost" : name;
    const credentials = secure
      ? grpc.credentials.createSsl(read(settings.tls.ca), read(settings.tls.key), read(settings.tls.cert))
      : grpc.credentials.createInsecure();
    this.#token = settings.token || read(settings.tokenFile).toString().trim();
    const address = `${host}:${port || (secure ? 443 : 80)}`;
    this.client = new (openshell().OpenShell)(address, raisedWindows(credentials), options);
  }

  /** The credentials of one call. With `waitForReady` the call waits while the gateway cannot be reached. */
  metadata(options: grpc.MetadataOptions = {}): grpc.Metadata {
    const metadata = new grpc.Metadata(options);
    metadata.set("authorization", `Bearer ${this.#token}`);
    return metadata;
  }

  /** Waits for the connection, for ever: a sandbox may be there before its gateway. */
  async connected(log: Log, stopped: AbortSignal): Promise<void> {
    while (!stopped.aborted) {
      const error = await new Promise<Error | undefined>((resolve) =>
        this.client.waitForReady(Date.now() + ACCEPT_DEADLINE, resolve),
      );
      if (!error) return;
      log.write("warn", `no connection to the gateway yet: ${error.message}`);
    }
  }
}

// ------------------------------------------------------------------------------------------------ Processes

/** Whom commands run as. Without `uid` they run as the supervisor itself. */
interface User {
  name: string;
  home: string;
  uid?: number;
  gid?: number;
}

/**
 * The image's user, else `sandbox`, when root starts the supervisor in a container. A user that /etc/passwd does not
 * know leaves commands with root; the real program refuses such an image.
 */
function findUser(settings: Settings, log: Log): User {
  const home = rooted(settings, settings.workdir);
  if (settings.root || process.getuid?.() !== 0) return { name: "sandbox", home };
  const [wanted = "", group = ""] = (settings.imageUser || "sandbox").split(":");
  const passwd = existsSync("/etc/passwd") ? readFileSync("/etc/passwd", "utf8") : "";
  const entry = passwd
    .split("\n")
    .map((line) => line.split(":"))
    .find(([name, , uid]) => name === wanted || uid === wanted);
  if (!entry) {
    log.write("warn", `no user '${wanted}' in /etc/passwd: commands run as root`);
    return { name: "root", home };
  }
  return {
    name: entry[0]!,
    home,
    uid: Number(entry[2]),
    gid: Number(/^\d+$/.test(group) ? group : entry[3]),
  };
}

/** What only the supervisor may know; the main process inherits every other variable of the container. */
const SUPERVISOR_ONLY = words(`
  OCI_IMAGE_USER SANDBOX_UID SANDBOX_GID SANDBOX_TOKEN SANDBOX_TOKEN_FILE K8S_SA_TOKEN_FILE TLS_CA TLS_CERT TLS_KEY
  PROVIDER_SPIFFE_WORKLOAD_API_SOCKET NETWORK_RUNTIME_CAPABILITIES FAKE_HOSTS`).map(
  (name) => `OPENSHELL_${name}`,
);

/** The main process: the container's environment, then identity and TERM unless the user set them. */
function mainEnvironment(settings: Settings, user: User): Record<string, string> {
  const inherited = Object.entries(process.env).filter(([name]) => !SUPERVISOR_ONLY.includes(name));
  const identity = {
    HOME: user.home,
    USER: user.name,
    SHELL: "/bin/bash",
    TERM: settings.main.tty ? "xterm-256color" : "dumb",
  };
  const { HOME, USER, SHELL, TERM } = { ...identity, ...settings.userEnvironment };
  return {
    ...(Object.fromEntries(inherited) as Record<string, string>),
    OPENSHELL_SANDBOX: "1",
    HOME,
    USER,
    SHELL,
    TERM,
  };
}

/** A command over SSH: nothing but identity, PATH, TERM and what the user set, except names of OpenShell's own. */
function commandEnvironment(settings: Settings, user: User, term: string): Record<string, string> {
  return {
    OPENSHELL_SANDBOX: "1",
    ...(settings.root ? { OPENSHELL_FAKE_ROOT: settings.root } : {}),
    HOME: user.home,
    USER: user.name,
    SHELL: "/bin/bash",
    PATH: process.env.PATH ?? "/usr/local/bin:/usr/bin:/bin",
    TERM: term,
    ...Object.fromEntries(
      Object.entries(settings.userEnvironment).filter(([name]) => !name.startsWith("OPENSHELL_")),
    ),
  };
}

/** How a process ended. */
interface Ended {
  code: number | null;
  signal: NodeJS.Signals | null;
}

/** A program to start. */
interface Launch {
  argv: string[];
  env: Record<string, string>;
}

/** Starts the user's processes, each in a session of its own, and ends whatever came of them. */
class Processes {
  readonly #own = new Set<number>();
  readonly #terminals = new Set<Bun.Terminal>();
  readonly #libc = openLibc();
  readonly #placement: { cwd: string; uid?: number; gid?: number };

  constructor(
    settings: Settings,
    readonly user: User,
  ) {
    const cwd = rooted(settings, settings.workdir);
    mkdirSync(cwd, { recursive: true });
    if (user.uid !== undefined && user.gid !== undefined) chownSync(cwd, user.uid, user.gid);
    this.#placement = { cwd, uid: user.uid, gid: user.gid };
    // Orphans of this process's children become its own children, so that none can hide from `endAll`.
    this.#libc?.symbols.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    setInterval(() => this.#reap(), 1_000).unref();
  }

  /** Starts a program on pipes. @throws when it cannot be started. */
  async piped({ argv, env }: Launch) {
    const child = spawn(argv[0]!, argv.slice(1), { ...this.#placement, env, detached: true });
    const ended = new Promise<Ended>((resolve) =>
      child.once("exit", (code, signal) => resolve({ code, signal })),
    );
    await new Promise<void>((resolve, reject) => child.once("spawn", () => resolve()).once("error", reject));
    // A reader that is gone shows in the process's own EPIPE.
    child.stdin.on("error", () => {});
    this.#own.add(child.pid!);
    void ended.then(() => this.#own.delete(child.pid!));
    return { pid: child.pid!, stdin: child.stdin, stdout: child.stdout, stderr: child.stderr, ended };
  }

  /** Starts a program on a terminal. `drained` resolves when nobody holds the terminal any more. @throws as `piped`. */
  onTerminal(
    { argv, env }: Launch,
    size: { cols: number; rows: number },
    output: (data: Uint8Array) => void,
  ) {
    const drained = Promise.withResolvers<void>();
    const child = Bun.spawn(argv, {
      ...this.#placement,
      env,
      terminal: {
        ...size,
        name: env.TERM,
        data: (_terminal, data) => output(data),
        exit: () => drained.resolve(),
      },
    });
    const terminal = child.terminal!;
    this.#own.add(child.pid);
    this.#terminals.add(terminal);
    const ended = child.exited.then((): Ended => {
      this.#own.delete(child.pid);
      return {
        code: child.signalCode ? null : child.exitCode,
        signal: child.signalCode as NodeJS.Signals | null,
      };
    });
    void drained.promise.then(() => {
      this.#terminals.delete(terminal);
      terminal.close();
    });
    return { pid: child.pid, terminal, ended, drained: drained.promise };
  }

  /** Ends every process below this one: SIGTERM and hang-up, after `grace` milliseconds SIGKILL. */
  async endAll(grace: number): Promise<void> {
    this.#signal(descendants(), "SIGTERM");
    // An interactive shell ignores SIGTERM, but not the loss of its terminal.
    for (const terminal of this.#terminals) terminal.close();
    const deadline = Date.now() + grace;
    while (Date.now() < deadline && descendants().length > 0) await sleep(5);
    for (let left = descendants(); left.length > 0 && Date.now() < deadline + 1_000; left = descendants()) {
      this.#signal(left, "SIGKILL");
      await sleep(5);
    }
  }

  #signal(pids: number[], signal: "SIGTERM" | "SIGKILL"): void {
    const refused = pids.filter((pid) => {
      try {
        process.kill(pid, signal);
      } catch (error) {
        return (error as NodeJS.ErrnoException).code === "EPERM";
      }
      return false;
    });
    // Podman's driver takes CAP_KILL away: then only the user itself may signal its processes.
    if (refused.length > 0) {
      const { uid, gid } = this.user;
      Bun.spawnSync(["/bin/sh", "-c", `kill -s ${signal.slice(3)} ${refused.join(" ")}`], {
        uid,
        gid,
        stderr: "ignore",
      });
    }
  }

  /** Collects dead processes that were not started here: a container's first process inherits orphans. */
  #reap(): void {
    for (const { pid, state } of processTable().filter(({ parent }) => parent === process.pid)) {
      if (state === "Z" && !this.#own.has(pid)) this.#libc?.symbols.waitpid(pid, null, WNOHANG);
    }
  }
}

const PR_SET_CHILD_SUBREAPER = 36;
const WNOHANG = 1;

/** The two calls that neither Bun nor Node has. Without libc orphans stay uncollected, no more. */
function openLibc() {
  for (const name of ["libc.so.6", "libc.so"]) {
    try {
      return dlopen(name, {
        prctl: { args: ["i32", "u64", "u64", "u64", "u64"], returns: "i32" },
        waitpid: { args: ["i32", "ptr", "i32"], returns: "i32" },
      });
    } catch {
      continue;
    }
  }
  return undefined;
}

function processTable(): { pid: number; parent: number; state: string }[] {
  return readdirSync("/proc").flatMap((entry) => {
    if (!/^\d+$/.test(entry)) return [];
    try {
      // pid (name) state ppid ...; the name may hold anything, so what follows is counted from its last bracket.
      const stat = readFileSync(`/proc/${entry}/stat`, "latin1");
      const [state = "", parent = ""] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
      return [{ pid: Number(entry), parent: Number(parent), state }];
    } catch {
      return []; // It ended meanwhile.
    }
  });
}

/** Every live process below this one. */
function descendants(): number[] {
  const table = processTable();
  const below = new Set([process.pid]);
  for (let before = 0; before < below.size;) {
    before = below.size;
    for (const { pid, parent } of table) if (below.has(parent)) below.add(pid);
  }
  return table
    .filter(({ pid, state }) => pid !== process.pid && below.has(pid) && state !== "Z")
    .map(({ pid }) => pid);
}

// ------------------------------------------------------------------------------------------------ Main process

/**
 * Starts the main process. Its input stays open and its output goes nowhere, as long as nobody attaches to it.
 * @returns a promise of its exit code, 128 + n when signal n ends it.
 * @throws when it cannot be started.
 */
async function startMain(
  { main }: Settings,
  processes: Processes,
  env: Record<string, string>,
): Promise<{ exit: Promise<number> }> {
  const launch = { argv: main.command, env };
  if (main.tty) {
    const { ended } = processes.onTerminal(launch, { cols: 80, rows: 24 }, () => {});
    return { exit: ended.then(exitCode) };
  }
  const { stdout, stderr, ended } = await processes.piped(launch);
  stdout.resume();
  stderr.resume();
  return { exit: ended.then(exitCode) };
}

const exitCode = ({ code, signal }: Ended) => code ?? 128 + (signal ? constants.signals[signal] : 0);

/** Reports the exit of the main process again and again until the gateway has taken it. */
async function reportMainExit(
  gateway: Gateway,
  { sandbox_id, instance_id, exit_code }: { sandbox_id: string; instance_id: string; exit_code: number },
  log: Log,
): Promise<void> {
  for (let delay = REPORT_RETRY.first; ; delay = Math.min(delay * 2, REPORT_RETRY.max)) {
    try {
      await unary(
        gateway.client,
        gateway.client.reportMainProcessExit,
        { sandbox_id, instance_id, exit_code },
        { deadlineMs: REPORT_DEADLINE, metadata: gateway.metadata() },
      );
      return;
    } catch (error) {
      log.write("warn", `the exit of the main process is not reported yet: ${describe(error)}`);
      await sleep(delay);
    }
  }
}

// ------------------------------------------------------------------------------------------------ SSH

/** What a command over SSH needs. */
interface Shells {
  settings: Settings;
  processes: Processes;
  log: Log;
}

/** The sandbox's SSH server: any user, no password, since only the gateway can open a relay to it. */
async function startSsh(shells: Shells): Promise<Server> {
  const ssh2 = (await import("ssh2")).default;
  let hostKey: string;
  // ssh2 1.17 takes one in 270 of the keys that it makes itself for malformed.
  do hostKey = ssh2.utils.generateKeyPairSync("ed25519").private;
  while (ssh2.utils.parseKey(hostKey) instanceof Error);
  const server = new ssh2.Server({ hostKeys: [hostKey] }, (client: Connection) => {
    client.on("authentication", (context) => context.accept());
    client.on("session", (accept) => serveSession(accept(), shells));
    client.on("tcpip", (accept, reject, { destIP, destPort }) => {
      dialLoopback({ host: destIP, port: destPort }).then(
        (socket) => bridge(accept(), socket),
        () => reject(),
      );
    });
    client.on("error", (error) => shells.log.write("debug", `ssh: ${error.message}`));
  });
  server.on("error", (error: Error) => shells.log.write("debug", `ssh: ${error.message}`));
  return server;
}

/**
 * One SSH session: at most one terminal, one command. As with the real program, environment requests are accepted and
 * dropped (the gateway writes variables into the command line), signal requests have no effect, and a command goes on
 * when its session is gone.
 */
function serveSession(session: Session, { settings, processes, log }: Shells): void {
  let pty: PseudoTtyInfo | undefined;
  let terminal: Bun.Terminal | undefined;
  // ssh2 passes no `accept` when the client wants no answer.
  session.on("env", (accept?: () => void) => accept?.());
  session.on("signal", (accept?: () => void) => accept?.());
  session.on("pty", (accept: (() => void) | undefined, _reject, info) => {
    pty = info;
    accept?.();
  });
  session.on("window-change", (accept: (() => void) | undefined, _reject, size) => {
    terminal?.resize(Math.max(size.cols, 1), Math.max(size.rows, 1));
    accept?.();
  });
  session.on("shell", (accept) => start(accept(), pty ? [shell(), "-i"] : [shell()]));
  session.on("exec", (accept, _reject, { command }) => {
    const line = command.trim();
    const channel = accept();
    if (line) start(channel, [shell(), "-lc", settings.root ? rootedCommand(settings, line) : line]);
  });

  function start(channel: ServerChannel, argv: string[]): void {
    const command = pty ? onTerminal(channel, argv, pty) : onPipes(channel, argv);
    command.catch((error: unknown) => {
      log.write("warn", `a command could not be started: ${describe(error)}`);
      const output = new Output(channel);
      void output
        .send(Buffer.from(`openshell: ${describe(error)}\n`), channel.stderr)
        .then(() => output.finish(1));
    });
  }

  async function onPipes(channel: ServerChannel, argv: string[]): Promise<void> {
    const child = await processes.piped({ argv, env: commandEnvironment(settings, processes.user, "dumb") });
    const output = new Output(channel);
    channel.pipe(child.stdin);
    const sent = Promise.all([
      output.forward(child.stdout, channel),
      output.forward(child.stderr, channel.stderr),
    ]);
    const { code } = await child.ended;
    await Promise.race([sent, sleep(DRAIN, undefined, { ref: false })]);
    output.finish(code ?? 1);
  }

  async function onTerminal(channel: ServerChannel, argv: string[], info: PseudoTtyInfo): Promise<void> {
    // The types of ssh2 lack the name of the terminal.
    const { term } = info as { term?: string };
    const env = commandEnvironment(settings, processes.user, term || "xterm-256color");
    const size = { cols: Math.max(info.cols, 1), rows: Math.max(info.rows, 1) };
    const output = new Output(channel);
    const child = processes.onTerminal({ argv, env }, size, (data) => void output.send(data, channel));
    terminal = child.terminal;
    // The end of the input is not the end of a terminal: the command goes on.
    channel.on("data", (data: Buffer) => terminal?.write(data));
    const { code } = await child.ended;
    const sent = child.drained.then(() => output.idle());
    await Promise.race([sent, sleep(DRAIN, undefined, { ref: false })]);
    terminal = undefined;
    output.finish(code ?? 1);
  }
}

/**
 * The output of a channel, one chunk at a time and only as fast as the client takes it. Once the channel is closed all
 * is dropped, so that the command does not block.
 */
class Output {
  #turn: Promise<void> = Promise.resolve();
  #release = () => {};
  #closed = false;

  constructor(readonly channel: ServerChannel) {
    channel.once("close", () => this.#close());
  }

  /** Resolves when the chunk is sent or dropped. `sink` is the channel or its stderr. */
  send(chunk: Uint8Array, sink: Writable): Promise<void> {
    const sent = () =>
      new Promise<void>((resolve) => {
        if (this.#closed) return resolve();
        this.#release = resolve;
        // ssh2 keeps a chunk that had to wait for the client, and would send it again when the other stream has to wait.
        Object.assign(this.channel, { _chunk: undefined, _chunkcb: undefined });
        Object.assign(this.channel, { _chunkErr: undefined, _chunkcbErr: undefined });
        sink.write(chunk, () => resolve());
      });
    return (this.#turn = this.#turn.then(sent));
  }

  async forward(source: Readable, sink: Writable): Promise<void> {
    for await (const chunk of source) await this.send(chunk as Buffer, sink);
  }

  idle(): Promise<void> {
    return this.#turn;
  }

  /** Sends the exit code, then closes the channel. */
  finish(code: number): void {
    if (!this.#closed) {
      this.channel.exit(code);
      this.channel.end();
    }
    this.#close();
  }

  #close(): void {
    this.#closed = true;
    this.#release();
  }
}

/**
 * The gateway puts the working folder in front of a command: `cd '/sandbox/x' && ...`. Where a folder stands for `/`,
 * the path means one below it.
 */
function rootedCommand(settings: Settings, line: string): string {
  return line.replace(/^cd (\/[\w./-]*|'\/(?:[^']|'"'"')*') && /, (_match, path: string) => {
    const absolute = path.startsWith("'") ? path.slice(1, -1).replaceAll(`'"'"'`, "'") : path;
    return `cd '${rooted(settings, absolute).replaceAll("'", `'"'"'`)}' && `;
  });
}

// ------------------------------------------------------------------------------------------------ Relays

type RelayCall = grpc.ClientDuplexStream<RelayFrame, RelayFrame__Output>;

/** The bytes of a RelayStream as a Node stream, with back-pressure both ways. It is over when the gateway ends it. */
function relayStream(call: RelayCall): Duplex {
  const stream = new Duplex({
    allowHalfOpen: false,
    read: () => void call.resume(),
    write: (data: Buffer, _encoding, done) => void call.write({ data }, () => done()),
    final(done) {
      call.end();
      done();
    },
    destroy(error, done) {
      call.cancel();
      done(error);
    },
  });
  call.on("data", ({ data }: RelayFrame__Output) => {
    if (data && data.length > 0 && !stream.push(data)) call.pause();
  });
  call.on("end", () => stream.push(null));
  call.on("error", (error: Error) => stream.destroy(error));
  return stream;
}

/** Connects to a port of the sandbox. @throws for anything but a loopback address and a port from 1 to 65535. */
async function dialLoopback({ host, port }: Pick<TcpRelayTarget__Output, "host" | "port">): Promise<Duplex> {
  const address = host.trim().toLowerCase() === "localhost" ? "127.0.0.1" : host.trim();
  if (port < 1 || port > 65_535) throw new Error(`tcp target port must be between 1 and 65535, got ${port}`);
  if (!/^127(\.\d+){3}$|^::1$/.test(address))
    throw new Error(`tcp target host must be loopback, got '${host}'`);
  return new Promise((resolve, reject) => {
    const socket = connect({ host: address, port, allowHalfOpen: true, noDelay: true });
    socket.once("connect", () => resolve(socket)).once("error", reject);
  });
}

/** Joins a relay with its target until either is over; what the target sent before its end still arrives. */
function bridge(relay: Duplex, target: Duplex): void {
  relay.on("close", () => target.destroy()).on("error", () => {});
  target.on("error", () => relay.destroy());
  relay.pipe(target).pipe(relay);
}

async function openRelay(
  gateway: Gateway,
  session: SessionCall,
  open: RelayOpen__Output,
  server: Server,
  log: Log,
) {
  const { channel_id } = open;
  const answer = (success: boolean, error = "") =>
    session.write({ relay_open_result: { channel_id, success, error } });
  try {
    const target = open.target === "tcp" ? await dialLoopback(open.tcp!) : undefined;
    answer(true);
    const call = gateway.client.relayStream(gateway.metadata());
    call.write({ init: { channel_id } });
    const relay = relayStream(call);
    relay.on("error", (error) => log.write("debug", `relay: ${error.message}`));
    if (target) bridge(relay, target);
    else server.injectSocket(relay as Socket);
  } catch (error) {
    log.write("warn", `relay refused: ${describe(error)}`);
    answer(false, describe(error));
  }
}

// ------------------------------------------------------------------------------------------------ Session

type SessionCall = grpc.ClientDuplexStream<SupervisorMessage, GatewayMessage__Output>;

/** What a session needs, and whom it serves. */
interface SessionContext {
  gateway: Gateway;
  hello: { sandbox_id: string; instance_id: string };
  server: Server;
  log: Log;
  stopped: AbortSignal;
}

/** Holds a session open until `stopped`: when one ends, the next is tried after a growing delay. */
async function holdSession(context: SessionContext): Promise<void> {
  let delay = RETRY.first;
  while (!context.stopped.aborted) {
    const { accepted, reason } = await oneSession(context);
    if (context.stopped.aborted) return;
    delay = accepted ? RETRY.first : Math.min(delay * 2, RETRY.max);
    context.log.write("warn", `supervisor session ended, next try in ${delay} ms: ${reason}`);
    await sleep(delay, undefined, { signal: context.stopped }).catch(() => {});
  }
}

function oneSession({ gateway, hello, server, log, stopped }: SessionContext) {
  return new Promise<{ accepted: boolean; reason: string }>((resolve) => {
    let accepted = false;
    let heartbeat: Timer | undefined;
    const call: SessionCall = gateway.client.connectSupervisor(gateway.metadata({ waitForReady: true }));
    const unanswered = setTimeout(() => end(`no answer to hello for ${ACCEPT_DEADLINE} ms`), ACCEPT_DEADLINE);
    const stop = () => end("stopped");
    stopped.addEventListener("abort", stop);

    function end(reason: string): void {
      clearTimeout(unanswered);
      clearInterval(heartbeat);
      stopped.removeEventListener("abort", stop);
      call.cancel();
      resolve({ accepted, reason });
    }

    call.on("error", (error: grpc.ServiceError) => end(describe(error)));
    call.on("end", () => end("the gateway closed the stream"));
    call.on("data", (message: GatewayMessage__Output) => {
      switch (message.payload) {
        case "session_accepted": {
          accepted = true;
          clearTimeout(unanswered);
          const { session_id, heartbeat_interval_secs } = message.session_accepted!;
          heartbeat = setInterval(
            () => call.write({ heartbeat: {} }),
            Math.max(heartbeat_interval_secs, 5) * 1_000,
          );
          log.write("info", "supervisor session established", { session_id });
          return;
        }
        case "session_rejected":
          return end(`rejected: ${message.session_rejected!.reason}`);
        case "relay_open":
          void openRelay(gateway, call, message.relay_open!, server, log);
          return;
        case "relay_close":
          log.write("info", "relay closed by the gateway", { channel_id: message.relay_close!.channel_id });
          return;
        case "heartbeat":
          return;
        default:
          log.write("warn", `unexpected message from the gateway: ${String(message.payload)}`);
      }
    });
    call.write({ hello });
  });
}

// ------------------------------------------------------------------------------------------------ Program

/** An error in one line, a gRPC error with its code. */
function describe(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const { code, details } = error as Partial<grpc.ServiceError>;
  return typeof code === "number" ? `${codeName(code)} ${details}` : error.message;
}

/**
 * Runs until the main process ends, and then exits with its code, or until SIGTERM or SIGINT, and then exits 0. The real
 * program exits with the main process's code there too, once that process is gone.
 * @param onSignal takes what a signal is to do from now on.
 */
export async function run(settings: Settings, onSignal: (end: () => void) => void): Promise<number> {
  const stopped = new AbortController();
  let signalled = false;
  const stopping = new Promise<number>((resolve) => onSignal(() => resolve(0)));
  void stopping.then(() => (signalled = true));
  const log = new Log(settings.sandboxId, settings.logLevel);
  const gateway = new Gateway(settings);
  const processes = new Processes(settings, findUser(settings, log));
  const hello = { sandbox_id: settings.sandboxId, instance_id: crypto.randomUUID() };

  const untilMainEnded = async (): Promise<number> => {
    log.write("debug", `connecting to ${settings.endpoint}`);
    await gateway.connected(log, stopped.signal);
    log.pushTo(gateway);
    const { exit } = await startMain(settings, processes, mainEnvironment(settings, processes.user));
    log.write("info", "main process started", {
      command: settings.main.command[0]!,
      tty: String(settings.main.tty),
    });
    let ended = false;
    void exit.then(() => (ended = true));
    const server = await startSsh({ settings, processes, log });
    // A sandbox whose main process is over already never becomes Ready.
    if (!ended) void holdSession({ gateway, hello, server, log, stopped: stopped.signal });
    const exit_code = await exit;
    // Not a failure of the main process: a gateway that is shutting down itself would take it for one.
    if (signalled) return 0;
    log.write("info", "main process ended", { exit_code: String(exit_code) });
    log.flush();
    stopped.abort();
    await reportMainExit(gateway, { ...hello, exit_code }, log);
    return exit_code;
  };

  try {
    return await Promise.race([untilMainEnded(), stopping]);
  } finally {
    await processes.endAll(STOP_GRACE);
    stopped.abort();
    gateway.client.close();
  }
}
