// SPDX-License-Identifier: Apache-2.0

/** A command that is run to its end for what it prints: a version, a list. It gets a bounded time, and a group of its own. */
import { spawn } from "bun";

/** What bounds a command. */
export interface Bounds {
  /** How long it may take, in milliseconds; 10 s. */
  deadlineMs?: number;
  /** The most that it may print on one of its outputs, in bytes; 4 MiB. */
  mostBytes?: number;
  /** Its environment; the harness' own unless given. */
  env?: Record<string, string | undefined>;
  cwd?: string;
}

/** How a command ended, and what it had printed by then. */
export interface Ended {
  stdout: Buffer;
  stderr: Buffer;
  /** Null after a signal. */
  exitCode: number | null;
  /** Such as "exit code 0" or "signal SIGKILL". */
  ending: string;
}

/** How long output may still be on its way once the group is gone, in milliseconds: only what left the group holds a pipe then. */
const DRAIN_MS = 500;

/** Groups that still run, by leader: none may outlive this process. */
const running = new Set<number>();
process.on("exit", () => running.forEach(endGroup));

/**
 * Runs a command to its end. The end is that of the process itself: what it leaves in the background is ended with its
 * process group, and never waited for, though it may hold the output open for ever.
 * @throws Error when it cannot be started, takes longer than the deadline, or prints more than the bound; with what it said.
 */
export async function shortCommand(argv: string[], bounds: Bounds = {}): Promise<Ended> {
  const { deadlineMs = 10_000, mostBytes = 4 * 2 ** 20, env = process.env, cwd } = bounds;
  let child;
  try {
    // Detached is a session, and with it a process group, of its own.
    child = spawn(argv, { env, cwd, stdin: "ignore", stdout: "pipe", stderr: "pipe", detached: true });
  } catch (error) {
    throw new Error(whyNotStarted(error), { cause: error });
  }
  const { pid } = child;
  running.add(pid);
  let problem: string | undefined;
  const giveUp = (why: string) => {
    problem ??= why;
    endGroup(pid);
  };
  const timer = setTimeout(() => giveUp(`it did not end within ${deadlineMs} ms`), deadlineMs);
  const flood = () => giveUp(`it printed more than ${mostBytes} bytes`);
  const outputs = [child.stdout, child.stderr].map((stream) => collect(stream, mostBytes, flood));
  await child.exited;
  clearTimeout(timer);
  endGroup(pid);
  running.delete(pid);
  const [stdout, stderr] = await Promise.all(outputs.map((output) => output.until(DRAIN_MS)));
  if (problem) throw new Error([problem, stderr!.toString().trim()].filter(Boolean).join(": "));
  const { exitCode, signalCode } = child;
  const ending = signalCode ? `signal ${signalCode}` : `exit code ${exitCode}`;
  return { stdout: stdout!, stderr: stderr!, exitCode, ending };
}

/** Reads a pipe, up to a bound. `until` resolves with what came, at the pipe's end or after so many milliseconds. */
function collect(stream: ReadableStream<Uint8Array>, mostBytes: number, onFlood: () => void) {
  const reader = stream.getReader();
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  const reading = (async () => {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      bytes += value.length;
      if (bytes > mostBytes) return onFlood();
      chunks.push(value);
    }
  })().catch(() => {});
  return {
    async until(ms: number): Promise<Buffer> {
      let timer: Timer;
      const late = new Promise<void>((done) => (timer = setTimeout(done, ms)));
      await Promise.race([reading, late]).finally(() => clearTimeout(timer));
      void reader.cancel().catch(() => {});
      return Buffer.concat(chunks);
    },
  };
}

/** Kills what is left of a process group that this process started. */
function endGroup(leader: number): void {
  try {
    process.kill(-leader, "SIGKILL");
  } catch {
    // Nothing of it is left.
  }
}

/** What the errors of posix_spawn mean; a program that is missing or not executable is told of before. */
const REASONS: Record<string, string> = {
  EACCES: "it is not executable",
  ENOEXEC: "it is neither a program for this machine nor a script whose first line names an interpreter (#!)",
  E2BIG: "its arguments are longer than the system allows",
  EMFILE: "this process has as many files open as it may (ulimit -n)",
  EAGAIN: "this user has as many processes as the system allows (ulimit -u)",
  ENOMEM: "the machine has no memory left",
};

/** Why a program cannot be started, from what `Bun.spawn` threw. */
export function whyNotStarted(error: unknown): string {
  const { code = "", message } = error as NodeJS.ErrnoException;
  if (code === "ENOENT" && message.includes("posix_spawn"))
    return "it is not there, or the interpreter that its first line names is not";
  return REASONS[code] ?? message;
}
