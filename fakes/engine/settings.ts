// SPDX-License-Identifier: Apache-2.0

/** The command line, which is the part of Podman's own that starts its API service. */
import { resolve } from "node:path";
import { parseArgs } from "node:util";

/** The Podman that this engine stands for. */
export const VERSION = "5.4.2";

const FLAGS = {
  root: { type: "string" },
  time: { type: "string", short: "t", default: "5" },
} as const;

export interface Settings {
  /** The folder that holds all state. */
  root: string;
  socket: string;
  /** Seconds without a request after which the service ends; 0 means never. */
  idleSeconds: number;
}

/** Ends the program with exit code 2. */
export class UsageError extends Error {
  constructor(problem: string) {
    super(`${problem} (usage: engine.ts --root DIR system service [--time=SECONDS] unix:///path/to/socket)`);
  }
}

/** @throws UsageError */
export function readSettings(argv: string[]): Settings {
  const { values, positionals } = parseArgs({
    args: argv,
    options: FLAGS,
    strict: false,
    allowPositionals: true,
  });
  for (const [name, value] of Object.entries(values)) {
    if (!(name in FLAGS)) throw new UsageError(`unknown flag: --${name}`);
    if (typeof value !== "string") throw new UsageError(`flag needs an argument: --${name}`);
  }
  const { root, time } = values as Partial<Record<keyof typeof FLAGS, string>>;
  const [command, verb, uri = "", ...rest] = positionals;
  if (command !== "system" || verb !== "service") {
    throw new UsageError(`unrecognized command "${positionals.join(" ")}", only "system service" is served`);
  }
  if (rest.length > 0) throw new UsageError(`accepts at most 1 arg, received ${rest.length + 1}`);
  if (!uri.startsWith("unix://")) {
    throw new UsageError(`the service needs a unix:// address, got "${uri}"`);
  }
  if (!root) throw new UsageError("--root is required");
  const idleSeconds = Number(time);
  if (!time || !Number.isInteger(idleSeconds) || idleSeconds < 0) {
    throw new UsageError(`invalid argument "${time}" for "--time": not a number of seconds`);
  }
  return { root: resolve(root), socket: resolve(pathOf(uri)), idleSeconds };
}

/** The path of a unix: URL, in which a character may be written as % and two digits, as Go reads one. */
function pathOf(uri: string): string {
  try {
    return decodeURIComponent(uri.slice("unix://".length));
  } catch {
    throw new UsageError(`parse "${uri}": invalid URL escape`);
  }
}
