// SPDX-License-Identifier: Apache-2.0

/** For tests: an engine process on a folder of the test's own, and what one looks at beside it. */
import { expect } from "bun:test";
import { existsSync, rmSync } from "node:fs";
import { join } from "node:path";

export const DEADLINE_MS = 8_000;

/** Looks until it sees what it should, and says what it saw last. */
export async function settles<Seen>(look: () => Promise<Seen> | Seen, expected: Seen): Promise<void> {
  const deadline = Date.now() + DEADLINE_MS;
  for (;;) {
    const seen = await look();
    if (Bun.deepEquals(seen, expected)) return;
    if (Date.now() > deadline) return expect<unknown>(seen).toEqual(expected);
    await Bun.sleep(2);
  }
}

/** The command line of an engine. */
export const engineCommand = (...words: string[]): string[] => [
  process.execPath,
  join(import.meta.dir, "../engine.ts"),
  ...words,
];

/** Starts an engine on `root` and waits for its socket. */
export async function startEngine(root: string, socket: string): Promise<Bun.Subprocess> {
  rmSync(socket, { force: true });
  const engine = Bun.spawn(
    engineCommand("--root", root, "system", "service", "--time=0", `unix://${socket}`),
    { stdio: ["ignore", "inherit", "inherit"], env: { PATH: process.env.PATH ?? "" } },
  );
  await settles(() => existsSync(socket), true);
  return engine;
}

/** Every process that lives, with its environment: pid, state, command, one a line. */
export function processes(): string[] {
  const all = process.platform === "linux" ? "axeww" : "-axEww";
  return Bun.spawnSync(["ps", all, "-o", "pid=,stat=,command="])
    .stdout.toString()
    .split("\n")
    .filter((line) => !/^\s*\d+\s+Z/.test(line));
}

/** The processes of containers whose files are below a folder. */
export const processesBelow = (folder: string): string[] =>
  processes().filter((line) => line.includes(`OPENSHELL_FAKE_ROOT=${folder}`));

/** A folder as a tar, which an engine takes for an image. */
export const tarOf = (tree: string): Uint8Array<ArrayBuffer> =>
  new Uint8Array(Bun.spawnSync(["tar", "-c", "-C", tree, "."]).stdout);
