// SPDX-License-Identifier: Apache-2.0

/** The signals that end a command of ours. */
import { readFileSync } from "node:fs";

/** Whether `nohup`, or a shell's `trap "" HUP`, started this process: the end of its terminal is not to end it. */
const outlivesTerminal = ignoresHangup();

/** Asked before we handle any signal: a handler, even one that is taken off again, ends that. Other systems do not tell. */
function ignoresHangup(): boolean {
  try {
    const [, mask = ""] = /^SigIgn:\s*(\w+)$/m.exec(readFileSync("/proc/self/status", "utf8"))!;
    // Bit 0 is signal 1.
    return (Number.parseInt(mask.slice(-1), 16) & 1) === 1;
  } catch {
    return false;
  }
}

/** What ends a command, less what whoever started it wants it to ignore. */
export const ENDING: readonly NodeJS.Signals[] = outlivesTerminal
  ? ["SIGINT", "SIGTERM"]
  : ["SIGINT", "SIGTERM", "SIGHUP"];

/** A command line for a child that is to outlive the terminal if this process does: Bun resets what it inherits. */
export const outlivingToo = (argv: string[]): string[] =>
  outlivesTerminal ? ["sh", "-c", `trap "" HUP; exec "$@"`, "sh", ...argv] : argv;
