// SPDX-License-Identifier: Apache-2.0

/** Reads results.json, of this harness or of another version of it. */
import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { HarnessError, PLACES } from "../harness.ts";
import type { Results } from "./model.ts";
import { redactResults } from "./redact.ts";

/**
 * The results in that file, or in results.json of that folder, redacted once more: another program may have made them.
 * @throws HarnessError when there are none, or what is there is something else.
 */
export function readResults(path: string): Results {
  const file = existsSync(path) && statSync(path).isDirectory() ? join(path, "results.json") : path;
  let found: unknown;
  try {
    found = JSON.parse(readFileSync(file, "utf8"));
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code !== undefined && !(error instanceof SyntaxError))
      throw new HarnessError(
        `${file}: no results can be read there (${code}). A run writes them: bun run e2e`,
      );
    throw new HarnessError(`${file}: not the results of a run: it is not JSON`);
  }
  const problem = problemOf(found);
  if (problem) throw new HarnessError(`${file}: not the results of a run: ${problem}`);
  return redactResults(found as Results);
}

const LISTS = ["leftovers", "scenarios", "processes", "calls", "phases", "marks"] as const;

/** What keeps reports from being made of it. results.schema.json is more exact; this has no dependency. */
function problemOf(found: unknown): string | undefined {
  const results = (found ?? {}) as Partial<Results>;
  const { schema } = results as { schema?: unknown };
  if (schema === undefined) return "it has no `schema`";
  if (schema !== 1) return `it is of format ${JSON.stringify(schema)}, and this harness reads format 1`;
  const list = LISTS.find((name) => !Array.isArray(results[name]));
  if (list) return `it has no list \`${list}\``;
  const object = (["run", "machine", "counts", "stack"] as const).find(
    (name) => typeof results[name] !== "object" || results[name] === null,
  );
  if (object) return `it has no \`${object}\``;
  const place = PLACES.find((name) => typeof results.stack?.[name]?.label !== "string");
  return place && `its stack has no ${place}`;
}
