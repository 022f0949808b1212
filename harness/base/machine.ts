// SPDX-License-Identifier: Apache-2.0

/** What a run needs of the machine: folders that hold programs, room, short paths, limits. Asked before anything starts. */
import {
  accessSync,
  chmodSync,
  constants,
  existsSync,
  readFileSync,
  rmSync,
  statfsSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { HarnessError } from "./errors.ts";

/** The user that this process acts as. `os.userInfo` fails in a container whose user has no entry in /etc/passwd. */
export const userId = (): number => process.geteuid?.() ?? -1;

/**
 * Why programs cannot be put into a folder and started from there; undefined if they can. The system is asked, since a
 * mount option (noexec) forbids it to everybody, root included.
 */
export function programsProblem(folder: string): string | undefined {
  const probe = join(folder, `.openshell-e2e-${process.pid}-${crypto.randomUUID()}`);
  try {
    writeFileSync(probe, "", { flag: "wx" });
    // Whatever the umask left of it.
    chmodSync(probe, 0o700);
    accessSync(probe, constants.X_OK);
    return undefined;
  } catch (error) {
    return existsSync(probe)
      ? "no program may be started from there (mounted with noexec)"
      : (error as Error).message;
  } finally {
    // Even of a file that is not there, a read-only file system is told as an error.
    if (existsSync(probe)) rmSync(probe);
  }
}

/** @throws HarnessError when a fake engine could not start what its containers run, which is in the run's folder. */
export function mustStartPrograms(root: string): void {
  const problem = programsProblem(root);
  if (problem)
    throw new HarnessError(
      `The folder for runs does not do: ${root}: ${problem}. The fake engine starts there what its containers run. ` +
        "Set OPENSHELL_E2E_RUN_DIR to a folder elsewhere",
    );
}

/** The longest path that a socket may have, in bytes: the kernel allows 107 or 103, and a driver may bind a longer name first. */
const LONGEST_SOCKET = 99;
/** The longest name of a socket below the folder of all runs: a run's id, its stack, its driver. */
const LONGEST_NAME = join("0badcafe", "999", "driver", "driver.sock");

/**
 * How many bytes the longest path of a socket has if runs are in that folder. Paths are bytes to the kernel.
 * @throws HarnessError when that is more than the kernel allows, or a configuration file could not hold the path.
 */
export function longestSocket(root: string): number {
  const path = join(root, LONGEST_NAME);
  // oxlint-disable-next-line no-control-regex
  if (/[\0-\x1f\x7f]/.test(root))
    throw new HarnessError(
      `The folder for runs has a control character in its name: ${JSON.stringify(root)}. ${ADVICE}`,
    );
  const bytes = Buffer.byteLength(path);
  if (bytes <= LONGEST_SOCKET) return bytes;
  const own = Buffer.byteLength(root);
  throw new HarnessError(
    `A socket's path would be ${bytes} bytes, ${LONGEST_SOCKET} is the most: ${path}\n` +
      `  Set OPENSHELL_E2E_RUN_DIR to a folder of ${LONGEST_SOCKET - bytes + own} bytes at most; this one has ${own}`,
  );
}

export const ADVICE = "Set OPENSHELL_E2E_RUN_DIR to a folder of your own";

/** What a run must find free in its folder, in bytes and files. One of all scenarios was seen to need 15 MB and 1,200 files. */
const ROOM = { bytes: 64 * 2 ** 20, files: 4_096 };

/** What is free in a folder, in MiB. @throws HarnessError when a run would not have enough. */
export function roomFor(root: string): number {
  const { bavail, bsize, files, ffree } = statfsSync(root);
  const free = Math.floor((bavail * bsize) / 2 ** 20);
  if (bavail * bsize < ROOM.bytes)
    throw new HarnessError(
      `The folder for runs has too little room: ${root} has ${free} MiB free, a run needs ${ROOM.bytes / 2 ** 20}. ` +
        "Set OPENSHELL_E2E_RUN_DIR to a folder on another disk",
    );
  // A file system that makes them as it needs them counts none.
  if (files > 0 && ffree < ROOM.files)
    throw new HarnessError(
      `The folder for runs has too little room: ${root} has ${ffree} inodes free, a run needs ${ROOM.files}. ` +
        "Set OPENSHELL_E2E_RUN_DIR to a folder on another disk",
    );
  return free;
}

/** The least of what a shell's `ulimit` can take away, as /proc/self/limits names it. */
const LIMITS = [
  // All scenarios pass with it, six at a time; with 64 most of the disruption scenarios fail, each for a reason of its own.
  { name: "Max open files", flag: "n", least: 128, shown: "128" },
  // In bytes; the shell counts in KiB or in blocks of 512.
  { name: "Max file size", flag: "f", least: 256 * 2 ** 20, shown: "256 MiB" },
];

/**
 * Makes sure that the limits of this process, which its children inherit, are not too low for a run.
 * @param table as in /proc/self/limits; other systems have none
 * @throws HarnessError that names the limit.
 */
export function checkLimits(
  table = existsSync("/proc/self/limits") ? readFileSync("/proc/self/limits", "utf8") : "",
): void {
  for (const { name, flag, least, shown } of LIMITS) {
    const line = table.split("\n").find((each) => each.startsWith(name)) ?? "";
    const soft = /^(\d+|unlimited)/.exec(line.slice(name.length).trim())?.[1];
    if (soft === undefined || soft === "unlimited" || Number(soft) >= least) continue;
    throw new HarnessError(
      `A limit is too low: ${name.toLowerCase()} is ${soft}, a run needs ${shown}. Raise it with \`ulimit -${flag}\``,
    );
  }
}

/** A path as the path of a URL, as sqlite: and unix: have one. */
export const urlPath = (path: string): string =>
  encodeURI(path).replaceAll("?", "%3F").replaceAll("#", "%23");
