// SPDX-License-Identifier: Apache-2.0

/** Reads results.json, of this harness or of another version of it. */
import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { HarnessError, PLACES } from "../harness.ts";
import { type Results, VERDICTS } from "./model.ts";
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

/** Fields of each item that reports rely on, and what they must be. */
const LISTS: Record<string, Record<string, "string" | "number" | "object">> = {
  leftovers: {},
  scenarios: {
    ...{ suite: "string", id: "string", title: "string", file: "string", reason: "string", source: "string" },
    ...{ harm: "string", expected: "string", seen: "string", line: "number", at: "number", ms: "number" },
    ...{ stack: "number", sandboxes: "object", logs: "object", engine: "object", engineCalls: "object" },
    verdict: "string",
  },
  processes: { name: "string", stack: "number", at: "number" },
  calls: {
    method: "string",
    status: "string",
    details: "string",
    sandbox: "string",
    at: "number",
    responses: "object",
  },
  phases: { sandbox: "string", name: "string", phase: "string", at: "number" },
  marks: { what: "string", at: "number" },
};

/** What keeps reports from being made of it. results.schema.json is more exact; this has no dependency. */
function problemOf(found: unknown): string | undefined {
  const results = (found ?? {}) as Record<string, unknown>;
  const { schema } = results;
  if (schema === undefined) return "it has no `schema`";
  if (schema !== 1) return `it is of format ${JSON.stringify(schema)}, and this harness reads format 1`;
  for (const [list, fields] of Object.entries(LISTS)) {
    const items = results[list];
    if (!Array.isArray(items)) return `it has no list \`${list}\``;
    const isOne = (item: unknown) =>
      list === "leftovers" ? typeof item === "string" : hasFields(item, fields);
    const wrong = items.findIndex((item) => !isOne(item));
    if (wrong >= 0) return `\`${list}\` has an item, number ${wrong + 1}, that is none`;
  }
  const { run, machine, counts, stack, scenarios, calls } = results as Partial<Results>;
  const isEvents = (events: unknown) =>
    Array.isArray(events) && events.every((event) => hasFields(event, { at: "number", sandbox: "string" }));
  if (calls?.some(({ events }) => events !== undefined && !isEvents(events)))
    return "`calls` has one with `events` that are none";
  if (!hasFields(run, { id: "string", startedAt: "string", ms: "number", command: "string" }))
    return "its `run` is none";
  if (Number.isNaN(Date.parse(run!.startedAt))) return `its \`run\` started at no time: ${run!.startedAt}`;
  if (!hasFields(machine, { os: "string", arch: "string", cpus: "number", memoryMb: "number" }))
    return "its `machine` is none";
  if (!hasFields(counts, Object.fromEntries(VERDICTS.map((verdict) => [verdict, "number"]))))
    return "its `counts` are none";
  const place = PLACES.find((name) => !hasFields(stack?.[name], { label: "string", program: "string" }));
  if (place) return `its \`stack\` has no ${place}`;
  const verdict = scenarios?.find((scenario) => !VERDICTS.includes(scenario.verdict));
  return verdict && `${verdict.id} has a verdict that there is not: ${verdict.verdict}`;
}

function hasFields(item: unknown, fields: Record<string, string>): boolean {
  const given = (item ?? {}) as Record<string, unknown>;
  return Object.entries(fields).every(([name, type]) => typeof given[name] === type && given[name] !== null);
}
