// SPDX-License-Identifier: Apache-2.0

import { ROOT } from "../base/root.ts";
import { expect, test } from "bun:test";
import { basename, join } from "node:path";
import { loadChecks } from "./load.ts";
import { mutants } from "./mutant.ts";

const FOLDER = join(ROOT, "scenarios", "driver-contract", "mutants");

const PROCESS_RULES = [
  ...["DC-3", "DC-4", "DC-5", "DC-6", "DC-7", "DC-8", "DC-9"],
  ...["DC-110", "DC-112", "DC-190", "DC-191"],
];

/** The mutants of each file, by the file's name. */
async function byFile(): Promise<Map<string, typeof mutants>> {
  const files = new Map<string, typeof mutants>();
  for (const file of [...new Bun.Glob("?-*.ts").scanSync(FOLDER)].toSorted()) {
    const before = mutants.length;
    await import(join(FOLDER, file));
    files.set(file, mutants.slice(before));
  }
  return files;
}

test("each group of rules has its mutants in a file of the same name, and one of its rules finds each of them", async () => {
  const checks = await loadChecks();
  const ids = Map.groupBy(checks, ({ file }) => basename(file));
  const files = await byFile();
  expect([...files.keys()]).toEqual([...ids.keys()].toSorted());
  const misplaced = [...files].flatMap(([file, some]) => {
    const own = new Set(ids.get(file)!.map(({ id }) => id));
    return some
      .filter(({ foundBy }) => !foundBy.some((id) => own.has(id)))
      .map(({ name }) => `${file}: ${name}`);
  });
  expect(misplaced).toEqual([]);
  const found = new Set(mutants.flatMap(({ foundBy }) => foundBy));
  const unproven = checks.filter(({ id }) => !found.has(id)).map(({ id }) => id);
  // How a process starts, binds its socket and ends does not cross the tap, on which mutants break a driver.
  expect(unproven).toEqual(PROCESS_RULES);
});
