// SPDX-License-Identifier: Apache-2.0

/** What programs under test make is removed, whatever they did to it, and nothing that it only leads to. */
import { ROOT } from "./root.ts";
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import {
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir, userInfo } from "node:os";
import { join } from "node:path";
import { removeTree } from "./remove.ts";

// Programs are started here, which takes its time on a busy machine.
setDefaultTimeout(60_000);

const folder = mkdtempSync(join(tmpdir(), "rt-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Folders like those of Go's module cache: nobody may write to them. */
const READ_ONLY = 'mkdir -p "$0/pkg/mod/cache" && touch "$0/pkg/mod/cache/file" && chmod -R a-w "$0/pkg"';
/** A user who is bound by modes, which root is not. */
const NOBODY = 65_534;

test("a read-only module cache is removed, by a user who is not root", async () => {
  const home = join(folder, "home");
  mkdirSync(home);
  const become =
    userInfo().uid === 0
      ? `process.setgroups([]); process.setgid(${NOBODY}); process.setuid(${NOBODY});`
      : "";
  if (become) {
    chownSync(folder, NOBODY, NOBODY);
    chownSync(home, NOBODY, NOBODY);
  }
  const script = `import { removeTree } from "./harness/base/remove.ts";
    ${become}
    const made = Bun.spawnSync(["sh", "-c", ${JSON.stringify(READ_ONLY)}, ${JSON.stringify(home)}], { cwd: "/", stderr: "inherit" });
    if (!made.success) throw new Error("the cache could not be made");
    removeTree(${JSON.stringify(home)});`;
  const child = Bun.spawnSync([process.execPath, "-e", script], { cwd: ROOT });
  expect({ said: child.stderr.toString(), left: existsSync(home) }).toEqual({ said: "", left: false });
});

test("a link is removed, and what it leads to stays as it is", () => {
  const [tree, precious] = [join(folder, "tree"), join(folder, "precious")];
  mkdirSync(join(tree, "locked"), { recursive: true });
  mkdirSync(precious, { mode: 0o500 });
  symlinkSync(precious, join(tree, "link"));
  symlinkSync(precious, join(tree, "locked", "link"));
  removeTree(tree);
  expect([existsSync(tree), existsSync(precious)]).toEqual([false, true]);
  symlinkSync(precious, tree);
  writeFileSync(join(folder, "file"), "");
  removeTree(tree);
  expect(readdirSync(folder).toSorted()).toEqual(["file", "precious"]);
});

test("names that are no text are removed", () => {
  const tree = join(folder, "odd");
  const script = `mkdir "$0" && cd "$0" && mkdir "$(printf '\\376')" && touch "$(printf '\\376/\\377')"`;
  expect(Bun.spawnSync(["sh", "-c", script, tree]).success).toBe(true);
  removeTree(tree);
  expect(existsSync(tree)).toBe(false);
});
