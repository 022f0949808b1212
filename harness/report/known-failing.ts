// SPDX-License-Identifier: Apache-2.0

/**
 * scenarios/known-failing.toml: what is known to fail, of which driver or gateway, and why. An entry is run all the
 * same; when it passes, or speaks of a check or a scenario that does not exist, the run fails, so that the list stays
 * true.
 */
import { ROOT } from "../base/root.ts";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "smol-toml";
import { HarnessError } from "../base/errors.ts";

/** An entry: a check or a scenario, and the driver or the gateway whose defect it shows. */
export interface Known {
  check?: string;
  scenario?: string;
  /** `driver_name` of GetCapabilities. */
  driver?: string;
  gateway?: typeof GATEWAY;
  /** Versions of that driver or gateway, both included. */
  since?: string;
  until?: string;
  why: string;
  /** It fails now and then, and a pass is no surprise. */
  passes?: "sometimes";
  /** The upstream issue, where there is one. */
  issue?: string;
}

/** Who is at work: the name and version that a driver gives itself, and a gateway's version. */
export interface Parties {
  driver?: { name: string; version: string };
  gateway?: { version: string };
}

const GATEWAY = "openshell-gateway";
const SCENARIOS = join(ROOT, "scenarios");
const FILE = join(SCENARIOS, "known-failing.toml");
const FIELDS = ["check", "scenario", "driver", "gateway", "since", "until", "why", "passes", "issue"];

/**
 * The entries about checks, or about scenarios.
 * @throws HarnessError for an entry that is malformed, or that names none of the `ids`.
 */
export function readKnown(kind: "check" | "scenario", ids: ReadonlySet<string>, file = FILE): Known[] {
  const wrong = (entry: unknown, what: string) =>
    new HarnessError(`${file}: ${what}: ${JSON.stringify(entry)}`);
  let entries: unknown;
  try {
    entries = parse(readFileSync(file, "utf8")).known ?? [];
  } catch (error) {
    throw new HarnessError(`${file}: ${(error as Error).message.split("\n")[0]}`);
  }
  if (!Array.isArray(entries)) throw wrong(entries, "[[known]] entries were expected");
  const known = entries.map((entry: Record<string, unknown>) => {
    const unknown = Object.keys(entry).find((field) => !FIELDS.includes(field));
    if (unknown) throw wrong(entry, `unknown field ${unknown}, known are ${FIELDS.join(", ")}`);
    const given = FIELDS.filter((field) => entry[field] !== undefined);
    const empty = given.find((field) => typeof entry[field] !== "string" || !entry[field]);
    if (empty) throw wrong(entry, `${empty} is no text`);
    for (const [one, other] of [
      ["check", "scenario"],
      ["driver", "gateway"],
    ] as const) {
      if (!entry[one] && !entry[other]) throw wrong(entry, `${one} or ${other} is missing`);
      if (entry[one] && entry[other]) throw wrong(entry, `${one} and ${other} exclude each other`);
    }
    if (!entry.why) throw wrong(entry, "why is missing");
    if (entry.check && entry.gateway) throw wrong(entry, "no gateway takes part in a check");
    if (entry.gateway && entry.gateway !== GATEWAY) throw wrong(entry, `gateway can be ${GATEWAY}`);
    if (entry.passes && entry.passes !== "sometimes") throw wrong(entry, 'passes can be "sometimes"');
    for (const field of ["since", "until"])
      if (entry[field] !== undefined && !isVersion(entry[field]))
        throw wrong(entry, `${field} is not a version such as "0.0.112"`);
    return entry as unknown as Known;
  });
  const ours = known.filter((entry) => entry[kind]);
  const stray = ours.find((entry) => !ids.has(entry[kind]!));
  if (stray) throw wrong(stray, `there is no ${kind} ${stray[kind]}`);
  return ours;
}

/**
 * The ids of all scenarios, of those too that a run does not load: as they stand in the sources, at the beginning of a
 * text.
 */
export function scenarioIds(folder = join(SCENARIOS, "external-podman")): Set<string> {
  const texts = [...new Bun.Glob("**/*.test.ts").scanSync(folder)].map((file) =>
    readFileSync(join(folder, file), "utf8"),
  );
  return new Set(
    texts.flatMap((text) => [...text.matchAll(/["'`]([A-Z]{2}-\d{2,})\b/g)].map(([, id]) => id!)),
  );
}

/**
 * The entry that speaks of this check or scenario, and of one who is at work. The fake driver (version `+fake`) has no
 * excuses: it is what a driver should be. The fake gateway has those of the real one, whose every habit it has.
 */
export function findKnown(known: Known[], id: string, { driver, gateway }: Parties): Known | undefined {
  return known.find((entry) => {
    if (entry.check !== id && entry.scenario !== id) return false;
    if (entry.gateway) return gateway !== undefined && within(entry, gateway.version);
    const excused = driver?.name === entry.driver && !driver?.version.endsWith("+fake");
    return excused && within(entry, driver!.version);
  });
}

/** Why it fails, with the issue. */
export const whyOf = ({ why, issue }: Known): string => (issue ? `${why}, ${issue}` : why);

/** What a listed check or scenario that passes is told, unless that is no surprise. */
export const outdated = ({ why, passes }: Known): string | undefined =>
  passes
    ? undefined
    : `it is listed as known to fail (${why}), and passes: take it out of scenarios/known-failing.toml`;

const within = ({ since, until }: Known, version: string): boolean =>
  (!since || (isVersion(version) && Bun.semver.order(version, since) >= 0)) &&
  (!until || (isVersion(version) && Bun.semver.order(version, until) <= 0));

const isVersion = (text: unknown): boolean => typeof text === "string" && /^\d+\.\d+\.\d+/.test(text);
