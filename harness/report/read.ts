// SPDX-License-Identifier: Apache-2.0

/** Reads results.json, of this harness or of another version of it. Whatever is there costs bounded time and memory. */
import Ajv, { type ErrorObject } from "ajv";
import { closeSync, constants, fstatSync, openSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { HarnessError } from "../base/errors.ts";
import type { Results } from "./model.ts";
import { redactResults } from "./redact.ts";
import schema from "./results.schema.json";
import { clipped } from "../base/text.ts";

/** The largest file that is read, in bytes: ten times the results of a run with 20,000 calls. */
const LARGEST = 2 ** 26;
/** Lists and objects in one another. Protobuf's own limit is 100 messages, each of which may be a few levels of JSON. */
const DEEPEST = 1_000;

/**
 * The results in that file, or in results.json of that folder, redacted once more: another program may have made them.
 * Nothing that they name is opened.
 * @throws HarnessError when there are none, or what is there is something else.
 */
export function readResults(path: string): Results {
  const isFolder = statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false;
  const file = isFolder ? join(path, "results.json") : path;
  const bytes = contentOf(file);
  const refuse = (problem: string) => new HarnessError(`${file}: not the results of a run: ${problem}`);
  if (isDeep(bytes)) throw refuse(`it is nested deeper than ${DEEPEST} levels`);
  let found: unknown;
  try {
    found = JSON.parse(bytes.toString("utf8"));
  } catch {
    throw refuse("it is not JSON");
  }
  const problem = problemOf(found);
  if (problem) throw refuse(problem);
  return redactResults(found as Results);
}

function contentOf(file: string): Buffer {
  let opened: number | undefined;
  try {
    // Opening a pipe to which nobody writes would wait for ever.
    opened = openSync(file, constants.O_RDONLY | constants.O_NONBLOCK);
    const found = fstatSync(opened);
    if (!found.isFile()) throw new HarnessError(`${file}: no results can be read there: it is not a file`);
    if (found.size > LARGEST)
      throw new HarnessError(
        `${file}: not the results of a run: it has ${Math.ceil(found.size / 1e6)} MB, and ${Math.floor(LARGEST / 1e6)} are the most`,
      );
    return readFileSync(opened);
  } catch (error) {
    if (error instanceof HarnessError) throw error;
    const { code } = error as NodeJS.ErrnoException;
    throw new HarnessError(`${file}: no results can be read there (${code}). A run writes them: bun run e2e`);
  } finally {
    if (opened !== undefined) closeSync(opened);
  }
}

const [QUOTE, BACKSLASH] = [0x22, 0x5c];
const OPENING = new Set([0x5b, 0x7b]);
const CLOSING = new Set([0x5d, 0x7d]);

/** Whether a JSON text is nested deeper than what works on it, level by level, can follow. */
function isDeep(bytes: Buffer): boolean {
  let depth = 0;
  let inString = false;
  for (let at = 0; at < bytes.length; at++) {
    const byte = bytes[at]!;
    if (inString) {
      if (byte === BACKSLASH) at++;
      else if (byte === QUOTE) inString = false;
    } else if (byte === QUOTE) inString = true;
    else if (OPENING.has(byte)) {
      if (++depth > DEEPEST) return true;
    } else if (CLOSING.has(byte)) depth--;
  }
  return false;
}

/** What keeps reports from being made of it. Fields that this version does not know are taken out. */
function problemOf(found: unknown): string | undefined {
  const { schema: format } = (found ?? {}) as Partial<Results>;
  if (format === undefined) return "it has no `schema`";
  if ((format as unknown) !== 1)
    return `it is of format ${clipped(JSON.stringify(format), 40)}, and this harness reads format 1`;
  const validate = new Ajv({ removeAdditional: true }).compile<Results>(schema);
  if (!validate(found)) return describe(validate.errors![0]!);
  const { startedAt } = found.run;
  return Number.isNaN(Date.parse(startedAt)) ? `its run started at no time: ${startedAt}` : undefined;
}

/** "`/scenarios/3/verdict` must be equal to one of the allowed values: pass, fail, …". */
function describe({ instancePath, message = "", params }: ErrorObject): string {
  const { allowedValues } = params as { allowedValues?: unknown[] };
  return `\`${instancePath || "/"}\` ${message}${allowedValues ? `: ${allowedValues.join(", ")}` : ""}`;
}
