// SPDX-License-Identifier: Apache-2.0

/** Finds the checks. */
import { ROOT } from "../base/root.ts";
import { join } from "node:path";
import { type Check, checks } from "./check.ts";

const FOLDER = join(ROOT, "scenarios", "driver-contract");

/** Loads every check, and resolves with them in the order of their groups. */
export async function loadChecks(): Promise<Check[]> {
  const files = [...new Bun.Glob("*.ts").scanSync(FOLDER)].filter((file) => !file.endsWith(".test.ts"));
  for (const file of files.toSorted()) await import(join(FOLDER, file));
  return checks;
}
