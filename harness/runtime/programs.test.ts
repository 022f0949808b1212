// SPDX-License-Identifier: Apache-2.0

import { ROOT } from "../base/root.ts";
import { expect, setDefaultTimeout, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { eventually } from "../base/waiting.ts";
import { compiledFake } from "./programs.ts";

// Programs are started here, which takes its time on a busy machine.
setDefaultTimeout(60_000);

const CACHE = join(ROOT, "node_modules", ".cache", "openshell-e2e");

test("a fake is compiled again when its sources change, and only then", async () => {
  const before = await compiledFake("driver");
  expect(await compiledFake("driver")).toEqual(before);
  const added = join(ROOT, "fakes", `added-by-a-test-${process.pid}.ts`);
  writeFileSync(added, "export {};\n");
  try {
    const after = await compiledFake("driver");
    expect(after.digest).not.toBe(before.digest);
    expect(existsSync(after.path)).toBe(true);
  } finally {
    rmSync(added);
  }
});

test("a compiler whose starter is killed is swept with the run, and leaves no half-made program anywhere", async () => {
  const place = mkdtempSync(join(tmpdir(), "pc-"));
  const run = join(place, randomBytes(4).toString("hex"));
  const cwd = join(place, "cwd");
  for (const path of [run, cwd]) mkdirSync(path, { mode: 0o700 });
  const added = join(ROOT, "fakes", `added-by-a-test-${process.pid}-too.ts`);
  writeFileSync(added, `export {}; // ${run}\n`);
  try {
    const script = `const { compiledFake } = await import("${ROOT}/harness/runtime/programs.ts");
      const { Run } = await import("${ROOT}/harness/runtime/run.ts");
      await compiledFake("driver", Run.open("${run}"));`;
    const starter = Bun.spawn([process.execPath, "-e", script], { cwd, stderr: "inherit" });
    const folders = () => readdirSync(CACHE).filter((name) => name.startsWith(`.compiling-${starter.pid}-`));
    const halfMade = () =>
      expect(folders().flatMap((name) => readdirSync(join(CACHE, name)))).not.toEqual([]);
    await eventually(halfMade, { what: "the compiler has begun to write" });
    starter.kill("SIGKILL");
    await starter.exited;
    const argv = [process.execPath, "harness.ts", "sweep", "--guard", "--run", run];
    expect(Bun.spawnSync(argv, { cwd: ROOT }).stdout.toString()).toContain("removed process");
    expect({ folders: folders(), there: readdirSync(place), cwd: readdirSync(cwd) }).toEqual({
      folders: [],
      there: ["cwd"],
      cwd: [],
    });
  } finally {
    rmSync(added);
    rmSync(place, { recursive: true });
  }
});

test("a compiled fake is the program that it stands for", async () => {
  const { path } = await compiledFake("gateway");
  const { stdout, exitCode } = Bun.spawnSync([path, "--version"]);
  expect({ said: stdout.toString(), exitCode }).toEqual({
    said: "openshell-gateway 0.0.112+fake\n",
    exitCode: 0,
  });
});
