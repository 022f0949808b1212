// SPDX-License-Identifier: Apache-2.0

/**
 * Loaded by `bun harness.ts` and `bun test` before anything else (bunfig.toml, or harness.ts itself in another folder, where
 * bun does not read ours): says in one line that packages are missing, or are those of another bun.lock, where Bun would
 * name the first import that it does not find; and that the code made of the .proto files is that of other ones. It must
 * do without packages, and let other programs pass: the install runs some.
 */
// oxlint-disable-next-line import/no-unassigned-import -- it refuses to go on
import "./bun-version.ts";
import { readFileSync } from "node:fs";
import { basename, join } from "node:path";

/** The bun.lock that was last installed: package.json's postinstall copies it once all else is done. */
const LAST = join("node_modules", ".bun.lock");
/**
 * Of what the code of the contract was made, one after the other: the .proto files, and the program that compiles them.
 * `bun run contract` writes it once all else is done.
 */
const COMPILED = join("proto", "v0.0", "types", ".compiled");

const read = (name: string): string => {
  try {
    return readFileSync(join(import.meta.dir, name), "utf8");
  } catch {
    return "";
  }
};

const isOurs = basename(Bun.main) === "harness.ts" || process.env.NODE_ENV === "test";
const isInstalled = read("bun.lock") === read(LAST);
const protos = [...new Bun.Glob("proto/*/*.proto").scanSync(import.meta.dir)].toSorted();
const isCompiled = [...protos, join("proto", "compile.ts")].map(read).join("") === read(COMPILED);
if (isOurs && !(isInstalled && isCompiled)) {
  const bun = Bun.which("bun") ? "bun" : `npx --yes bun@${Bun.version}`;
  const [what, how] = isInstalled
    ? ["the code of the .proto files is not that of the present ones", "run contract"]
    : ["bun.lock is not installed here", "install --frozen-lockfile"];
  console.error(`openshell-e2e: ${what}: run \`${bun} ${how}\` in ${import.meta.dir}`);
  process.exit(2);
}
