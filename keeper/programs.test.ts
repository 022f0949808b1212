// SPDX-License-Identifier: Apache-2.0

import { expect, test } from "bun:test";
import { existsSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { compiledFake } from "./programs.ts";

test("a fake is compiled again when its sources change, and only then", async () => {
  const before = await compiledFake("driver");
  expect(await compiledFake("driver")).toEqual(before);
  const added = join(import.meta.dir, "..", "fakes", `added-by-a-test-${process.pid}.ts`);
  writeFileSync(added, "export {};\n");
  try {
    const after = await compiledFake("driver");
    expect(after.digest).not.toBe(before.digest);
    expect(existsSync(after.path)).toBe(true);
  } finally {
    rmSync(added);
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
