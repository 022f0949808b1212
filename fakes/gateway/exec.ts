// SPDX-License-Identifier: Apache-2.0

/**
 * Runs a command in a sandbox: SSH through a relay to the supervisor's server, as user `sandbox` with no credentials,
 * since whoever reaches that server has passed the gateway. Environment and working directory travel in the command.
 */
import type { Duplex } from "node:stream";
import type { ClientChannel } from "ssh2";
import type { ExecSandboxEvent } from "../../proto/v0.0/types/openshell/v1/ExecSandboxEvent.ts";
import type { ExecSandboxInput__Output } from "../../proto/v0.0/types/openshell/v1/ExecSandboxInput.ts";
import type { ExecSandboxRequest__Output } from "../../proto/v0.0/types/openshell/v1/ExecSandboxRequest.ts";
import { denied, internal, invalid, unavailable } from "../status.ts";

const MAX_COMMAND = 256 * 1024;
const KEEPALIVE = { keepaliveInterval: 15_000, keepaliveCountMax: 4 };
const TIMED_OUT = 124;
/** How long a channel may stay open after the command's exit. */
const CLOSE_AFTER_EXIT_MS = 500;

/** Loaded when the first sandbox is made, so that neither a start nor the first command waits for it. */
export const ssh = () => import("ssh2");

export interface Execution {
  relay: Duplex;
  request: ExecSandboxRequest__Output;
  /** What follows the request of an interactive run; left out, input is the request's `stdin`. */
  input?: AsyncIterable<ExecSandboxInput__Output>;
  /** Whether the caller is still there. As in the real gateway, only an interactive run heeds it, at its next output. */
  emit(event: ExecSandboxEvent): boolean;
}

/**
 * Runs the command, emits its output as it comes, then its exit.
 * @throws Status when the connection fails, or ends before the command has an exit code
 */
export async function execute({ relay, request, input, emit }: Execution): Promise<void> {
  const command = commandLine(request);
  const { Client } = await ssh();
  const client = new Client();
  const close = () => {
    client.end();
    relay.destroy();
  };
  const timeout = Promise.withResolvers<number>();
  const seconds = request.timeout_seconds;
  const timer = seconds ? setTimeout(() => timeout.resolve(TIMED_OUT), seconds * 1000) : undefined;
  try {
    const run = async () => {
      const listen = (channel: ClientChannel) => finished(channel, client, (event) => emit(event) || !input);
      const { channel, exitCode } = await open(client, relay, command, request, input !== undefined, listen);
      if (input) void feed(channel, input, request.tty);
      else channel.end(request.stdin);
      return await exitCode;
    };
    const running = run();
    running.catch(() => {}); // after a timeout nobody waits for it
    emit({ exit: { exit_code: await Promise.race([running, timeout.promise]) } });
  } finally {
    clearTimeout(timer);
    close();
  }
}

/**
 * Connects, logs in and starts the command. `listen` is called before anything that follows the answer is read: output,
 * exit code and end of a short command can all come with it.
 */
function open(
  client: import("ssh2").Client,
  relay: Duplex,
  command: string,
  { tty, cols, rows }: ExecSandboxRequest__Output,
  interactive: boolean,
  listen: (channel: ClientChannel) => Promise<number>,
): Promise<{ channel: ClientChannel; exitCode: Promise<number> }> {
  // Only an interactive run has a window; the other kind gets a terminal without a size.
  const size = interactive ? { cols: cols || 80, rows: rows || 24 } : { cols: 0, rows: 0 };
  return new Promise((resolve, reject) => {
    client.once("ready", () => {
      client.exec(
        command,
        tty ? { pty: { term: "xterm-256color", width: 0, height: 0, ...size } } : {},
        (error, channel) => {
          if (error) reject(internal(`failed to execute command over ssh: ${error.message}`));
          else resolve({ channel, exitCode: listen(channel) });
        },
      );
    });
    client.on("error", (error) => {
      if (error.level === "client-authentication") reject(denied("ssh authentication rejected by sandbox"));
      else reject(internal(`failed to establish ssh transport: ${error.message}`));
    });
    client.once("close", () => reject(internal("failed to establish ssh transport: Disconnected")));
    client.connect({ sock: relay, username: "sandbox", ...KEEPALIVE });
  });
}

/**
 * Passes input on until the caller ends it, and then closes the channel, as the real gateway does: a command whose input
 * ends early ends without an exit code.
 */
async function feed(
  channel: ClientChannel,
  input: AsyncIterable<ExecSandboxInput__Output>,
  tty: boolean,
): Promise<void> {
  try {
    for await (const { payload, stdin, resize } of input) {
      if (payload === "stdin" && stdin && !channel.write(stdin)) await drained(channel);
      if (payload === "resize" && resize && tty) channel.setWindow(resize.rows, resize.cols, 0, 0);
    }
  } catch {} // a caller who has left
  channel.end();
  channel.close();
}

const drained = (channel: ClientChannel) =>
  new Promise<void>((resolve) => {
    channel.once("drain", resolve);
    channel.once("close", resolve);
  });

/** The exit code, once all output has been emitted. */
function finished(
  channel: ClientChannel,
  client: import("ssh2").Client,
  emit: Execution["emit"],
): Promise<number> {
  return new Promise((resolve, reject) => {
    let exitCode: number | undefined;
    const end = () => {
      if (exitCode !== undefined) resolve(exitCode);
      else reject(unavailable("exec relay closed before the command reported an exit status"));
    };
    const pass = (event: ExecSandboxEvent) => emit(event) || client.end();
    channel.on("data", (data: Buffer) => pass({ stdout: { data } }));
    channel.stderr.on("data", (data: Buffer) => pass({ stderr: { data } }));
    channel.on("exit", (code: number | null) => {
      exitCode = code ?? undefined;
      setTimeout(end, CLOSE_AFTER_EXIT_MS);
    });
    channel.once("close", end);
    client.once("close", end);
  });
}

/** `cd DIR && NAME=value command argument`, quoted for a shell. */
function commandLine({ command, environment, workdir }: ExecSandboxRequest__Output): string {
  const variables = Object.entries(environment).toSorted(([one], [other]) => (one < other ? -1 : 1));
  const words = [...variables.map(([name, value]) => `${name}=${quote(value)}`), ...command.map(quote)];
  const line = `${workdir && `cd ${quote(workdir)} && `}${words.join(" ")}`;
  if (Buffer.byteLength(line) <= MAX_COMMAND) return line;
  throw invalid(`command construction failed: assembled command string exceeds ${MAX_COMMAND} byte limit`);
}

const quote = (word: string) =>
  /^[A-Za-z0-9./_-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`;
