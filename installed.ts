// SPDX-License-Identifier: Apache-2.0

/**
 * Loaded by `bun harness.ts` and `bun test` before anything else (bunfig.toml): says in one line that packages are missing,
 * or are those of another bun.lock, where Bun would name the first import that it does not find. It must do without
 * packages, and let other programs pass: the install runs some.
 */
import { existsSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";

/** The bun.lock that was last installed: package.json's postinstall copies it once all else is done. */
const LAST = join("node_modules", ".bun.lock");

const read = (name: string): string => {
  try {
    return readFileSync(join(import.meta.dir, name), "utf8");
  } catch {
    return "";
  }
};

const isOurs = basename(Bun.main) === "harness.ts" || process.env.NODE_ENV === "test";
const isInstalled =
  read("bun.lock") === read(LAST) && existsSync(join(import.meta.dir, "proto", "v0.0", "codecs.ts"));
if (isOurs && !isInstalled) {
  const bun = Bun.which("bun") ? "bun" : `npx --yes bun@${Bun.version}`;
  console.error(
    `openshell-e2e: bun.lock is not installed here: run \`${bun} install --frozen-lockfile\` in ${import.meta.dir}`,
  );
  process.exit(2);
}
