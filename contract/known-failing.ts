// SPDX-License-Identifier: Apache-2.0

/**
 * scenarios/known-failing.toml: what is known to fail, of which driver, and why. An entry is run all the same; when it
 * passes, or speaks of a check that does not exist, the run fails, so that the list stays true.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "smol-toml";
import { HarnessError } from "../harness.ts";

/** An entry. `since` and `until` are versions of the driver, both included. */
export interface Known {
  check: string;
  driver: string;
  since?: string;
  until?: string;
  why: string;
  /** The upstream issue, where there is one. */
  issue?: string;
}

const FILE = join(import.meta.dir, "..", "scenarios", "known-failing.toml");
const FIELDS = ["check", "driver", "since", "until", "why", "issue"];

/** @throws HarnessError for an entry that is malformed, or that names none of the `ids`. */
export function readKnown(ids: ReadonlySet<string>, file = FILE): Known[] {
  const wrong = (entry: unknown, what: string) =>
    new HarnessError(`${file}: ${what}: ${JSON.stringify(entry)}`);
  let entries: unknown;
  try {
    entries = parse(readFileSync(file, "utf8")).known ?? [];
  } catch (error) {
    throw new HarnessError(`${file}: ${(error as Error).message.split("\n")[0]}`);
  }
  if (!Array.isArray(entries)) throw wrong(entries, "[[known]] entries were expected");
  return entries.map((entry: Record<string, unknown>) => {
    const unknown = Object.keys(entry).find((field) => !FIELDS.includes(field));
    if (unknown) throw wrong(entry, `unknown field ${unknown}, known are ${FIELDS.join(", ")}`);
    for (const field of ["check", "driver", "why"])
      if (typeof entry[field] !== "string" || !entry[field]) throw wrong(entry, `${field} is missing`);
    for (const field of ["since", "until"])
      if (entry[field] !== undefined && !isVersion(entry[field]))
        throw wrong(entry, `${field} is not a version such as "0.0.112"`);
    const known = entry as unknown as Known;
    if (!ids.has(known.check)) throw wrong(entry, `there is no check ${known.check}`);
    return known;
  });
}

/** The entry that speaks of this check of this driver. A fake (version `+fake`) has no excuses. */
export function findKnown(
  known: Known[],
  check: string,
  { name, version }: { name: string; version: string },
): Known | undefined {
  if (version.endsWith("+fake")) return undefined;
  const within = ({ since, until }: Known) =>
    (!since || (isVersion(version) && Bun.semver.order(version, since) >= 0)) &&
    (!until || (isVersion(version) && Bun.semver.order(version, until) <= 0));
  return known.find((entry) => entry.check === check && entry.driver === name && within(entry));
}

const isVersion = (text: unknown): boolean => typeof text === "string" && /^\d+\.\d+\.\d+/.test(text);
