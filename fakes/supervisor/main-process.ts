// SPDX-License-Identifier: Apache-2.0

/**
 * The main process, whose end is the end of the sandbox, and the report of it.
 */
import { constants } from "node:os";
import type { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { unary } from "../../proto/contract.ts";
import { describe, type Gateway } from "./gateway.ts";
import type { Log } from "./log.ts";
import { MainSession } from "./main-session.ts";
import type { Ended, Launch, Processes } from "./processes.ts";
import type { Settings } from "./settings.ts";

const REPORT_RETRY = { first: 250, max: 2_000 };
const REPORT_DEADLINE = 5_000;

/** What it may still print after its end, while a child of it holds its output open. In milliseconds. */
const DRAIN = 2_000;

/**
 * Starts the main process. Its input stays open, also while nobody is attached to it.
 * @returns a promise of its exit code, 128 + n when signal n ends it; and the session to which clients attach.
 * @throws when it cannot be started.
 */
export async function startMain(
  { main }: Settings,
  processes: Processes,
  env: Record<string, string>,
): Promise<{ exit: Promise<number>; session: MainSession }> {
  const launch = { argv: main.command, env };
  const started = main.tty ? onTerminal(launch, processes) : await onPipes(launch, processes);
  const { session, drained, ended } = started;
  const exit = ended.then(exitCode);
  void exit.then(async (code) => {
    await Promise.race([drained, sleep(DRAIN, undefined, { ref: false })]);
    session.publish({ exit: code });
  });
  return { exit, session };
}

function onTerminal(launch: Launch, processes: Processes) {
  const early: Uint8Array[] = [];
  let print = (data: Uint8Array): void => void early.push(data);
  const child = processes.onTerminal(launch, { cols: 80, rows: 24 }, (data) => print(data));
  const { pid, terminal, drained, ended } = child;
  const session = new MainSession({
    write: (data) => void terminal.write(data),
    resize: ({ cols, rows }) => terminal.resize(Math.max(cols, 1), Math.max(rows, 1)),
    signal: (name) => signalGroup(pid, name),
  });
  print = (data) => session.publish({ stream: "stdout", data: Uint8Array.from(data) });
  for (const data of early) print(data);
  return { session, drained, ended };
}

async function onPipes(launch: Launch, processes: Processes) {
  const { pid, stdin, stdout, stderr, ended } = await processes.piped(launch);
  const session = new MainSession({
    write: (data) => void stdin.write(data),
    resize() {},
    signal: (name) => signalGroup(pid, name),
  });
  const print = async (source: Readable, stream: "stdout" | "stderr") => {
    for await (const data of source) session.publish({ stream, data: data as Buffer });
  };
  const drained = Promise.all([print(stdout, "stdout"), print(stderr, "stderr")]);
  return { session, drained, ended };
}

/** Signals the process and what it started; each main process leads a group of its own. */
function signalGroup(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(-pid, name);
  } catch {
    // It is gone.
  }
}

const exitCode = ({ code, signal }: Ended) => code ?? 128 + (signal ? constants.signals[signal] : 0);

/** Reports the exit of the main process again and again until the gateway has taken it. */
export async function reportMainExit(
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
