// SPDX-License-Identifier: Apache-2.0

/** What scenarios run in sandboxes. A shell and a busybox must do: the image is the user's. */
import { expect } from "bun:test";
import { eventually, type Sandbox } from "../../harness.ts";

/** The command of a main process that runs a script with these arguments, and then stays until it is told to end. */
export const stays = (script: string, ...args: string[]): string[] => [
  "sh",
  "-c",
  `${script}; trap 'exit 0' TERM; while :; do sleep 1 & wait; done`,
  "main",
  ...args,
];

/**
 * Keeps a script from ending as soon as it begins: a supervisor without NVIDIA/OpenShell#3142 now and then loses the
 * exit code of a process that does.
 */
export const A_MOMENT = "sleep 0.05";

/** Words that a shell on the way would change: blanks, nothing, its own characters, a line break, other alphabets. */
export const DIFFICULT_WORDS = [
  "two words",
  "",
  "$HOME `id` $(id) * ? ~",
  "; && | > < # !",
  "'single' \"double\" \\",
  "line\nbreak",
  "ünï 🦀",
  "--flag",
];

/** Words as `printf "<%s>"` prints them, so that none can hide. */
export const printed = (...words: string[]): string => words.map((word) => `<${word}>`).join("");

/** Waits until a file in the workspace has this content: a sandbox can be Ready before its main process has run. */
export async function fileHolds(sandbox: Sandbox, file: string, content: string): Promise<void> {
  await eventually(async () => expect((await sandbox.exec(["cat", file])).stdout).toBe(content), {
    what: `the workspace's file ${file}`,
  });
}

/** A request that is refused for what it says. */
export const invalid = (message: string) => ({ code: "INVALID_ARGUMENT", message });
