// SPDX-License-Identifier: Apache-2.0

/**
 * The SSH server of the sandbox: commands, terminals, forwarded ports, and the main process to attach to.
 */
import type { Readable, Writable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import type { Connection, PseudoTtyInfo, Server, ServerChannel, Session } from "ssh2";
import { describe } from "./gateway.ts";
import type { Log } from "./log.ts";
import { DetachKeys, type MainSession } from "./main-session.ts";
import type { Processes } from "./processes.ts";
import { bridge, dialLoopback } from "./relays.ts";
import { rooted, shell, type Settings } from "./settings.ts";
import { commandEnvironment } from "./user.ts";

/** What a process may still write after it ended, while a background child holds its output open. In milliseconds. */
const DRAIN = 2_000;

/** What a client may send the main process. */
const MAIN_SIGNALS = ["SIGHUP", "SIGINT", "SIGKILL", "SIGQUIT", "SIGTERM"];
const ALREADY_OWNED = "openshell: canonical main process already has an input owner; attached read-only\n";

/** What a command over SSH needs. */
interface Shells {
  settings: Settings;
  processes: Processes;
  main: MainSession;
  log: Log;
}

/** The sandbox's SSH server, made for the first relay: most sandboxes never run a command. */
export function sshServer(shells: Shells): () => Promise<Server> {
  let server: Promise<Server> | undefined;
  return () => (server ??= startSsh(shells));
}

/** Takes any user without a password, since only the gateway can open a relay to it. */
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
 * dropped (the gateway writes variables into the command line), signal requests reach the main process alone, and a
 * command goes on when its session is gone.
 */
function serveSession(session: Session, { settings, processes, main, log }: Shells): void {
  let pty: PseudoTtyInfo | undefined;
  let terminal: { resize(cols: number, rows: number): void } | undefined;
  let readOnly = false;
  let attached = false;
  // ssh2 passes no `accept` when the client wants no answer.
  session.on("env", (accept: (() => void) | undefined, _reject, { key, val }) => {
    if (key === "OPENSHELL_MAIN_READ_ONLY" && val === "1") readOnly = true;
    accept?.();
  });
  session.on("signal", (accept: (() => void) | undefined, _reject, { name }) => {
    if (attached && MAIN_SIGNALS.includes(`SIG${name}`)) main.input.signal(`SIG${name}` as NodeJS.Signals);
    accept?.();
  });
  session.on("pty", (accept: (() => void) | undefined, _reject, info) => {
    pty = info;
    accept?.();
  });
  session.on("window-change", (accept: (() => void) | undefined, _reject, size) => {
    terminal?.resize(Math.max(size.cols, 1), Math.max(size.rows, 1));
    accept?.();
  });
  session.on("shell", (accept) => start(accept(), pty ? [shell(), "-i"] : [shell()]));
  session.on("subsystem", (accept, reject, { name }) => {
    if (name === "openshell-main") attach(accept());
    else reject();
  });
  session.on("exec", (accept, _reject, { command }) => {
    const line = command.trim();
    const channel = accept();
    if (line) start(channel, [shell(), "-lc", settings.root ? rootedCommand(settings, line) : line]);
  });

  /** What the main process printed and prints, until it ends or the client leaves. The first who comes may type. */
  function attach(channel: ServerChannel): void {
    attached = true;
    const output = new Output(channel);
    if (pty) main.input.resize(pty);
    terminal = { resize: (cols, rows) => main.input.resize({ cols, rows }) };
    const giveBack = readOnly ? undefined : main.takeInput();
    if (!readOnly && !giveBack) void output.send(Buffer.from(ALREADY_OWNED), channel.stderr);
    const keys = new DetachKeys();
    const detach = main.attach((event) => {
      if ("exit" in event) void output.idle().then(() => output.finish(event.exit));
      else void output.send(event.data, event.stream === "stdout" ? channel : channel.stderr);
    });
    channel.on("data", (data: Buffer) => {
      const { forward, detach: leaves } = keys.read(data);
      if (giveBack && forward.length > 0) main.input.write(forward);
      if (leaves) output.finish(0);
    });
    // The end of a client's input is not the end of the process's.
    channel.once("end", () => giveBack?.());
    channel.once("close", () => {
      attached = false;
      giveBack?.();
      detach();
    });
  }

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
    channel.on("data", (data: Buffer) => terminal && child.terminal.write(data));
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
 * Where a folder stands for `/`: the gateway puts the working folder in front of a command, `cd '/sandbox/x' && ...`, and
 * that means one below it; and so does the workspace wherever else a command names it by its whole path.
 */
function rootedCommand(settings: Settings, line: string): string {
  const [, folder, rest] = /^cd (\/[\w./-]*|'\/(?:[^']|'"'"')*') && (.*)$/s.exec(line) ?? ["", "", line];
  const absolute = folder.startsWith("'") ? folder.slice(1, -1).replaceAll(`'"'"'`, "'") : folder;
  const cd = folder && `cd '${rooted(settings, absolute).replaceAll("'", `'"'"'`)}' && `;
  const workspace = rooted(settings, settings.workdir);
  // Elsewhere it may stand in any quotes.
  if (!/^[\w./-]+$/.test(workspace)) return cd + rest;
  const named = new RegExp(`(?<![\\w./-])${RegExp.escape(settings.workdir)}(?![\\w.-])`, "g");
  return cd + rest.replace(named, workspace);
}
