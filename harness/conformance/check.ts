// SPDX-License-Identifier: Apache-2.0

/**
 * What a check of the driver contract is, and the words in which it finds a driver right or wrong.
 *
 * The checks themselves are in scenarios/driver-contract, a file for each group of rules.
 */
import { aboutCaller } from "../report/scenario.ts";
import type { Trial } from "./trial.ts";

/** MUST: the gateway depends on it, or the contract states it. SHOULD: every driver of upstream's does it. */
export type Level = "MUST" | "SHOULD";

/** A rule of the contract, why it matters, and its proof. */
export interface Check {
  /** Stable, such as "DC-45". */
  id: string;
  /** The letter and the subject of its group, such as "E Get and List". */
  group: string;
  level: Level;
  /** The rule as a sentence. */
  rule: string;
  /** Where the rule comes from. */
  source: string;
  /** What users meet when a driver breaks it. */
  harm: string;
  /** It starts, ends or floods drivers or the engine: nothing else runs beside it. */
  alone: boolean;
  /** What its body may take, in milliseconds. */
  deadlineMs: number;
  /** Where it stands, relative to the repository. */
  file: string;
  line: number;
  body: (trial: Trial) => Promise<void>;
}

/** Every check that is loaded, in the order of the files. */
export const checks: Check[] = [];

type About = Pick<Check, "source" | "harm"> & Partial<Pick<Check, "alone" | "deadlineMs">>;

/** The checks of one group: `const check = group("E Get and List")`, and then `check("DC-45", "MUST", …)`. */
export function group(name: string) {
  return (id: string, level: Level, rule: string, about: About, body: Check["body"]): void => {
    if (checks.some((known) => known.id === id)) throw new Error(`There are two checks ${id}`);
    const { file, line } = aboutCaller(id, import.meta.path);
    checks.push({
      id,
      group: name,
      level,
      rule,
      alone: false,
      deadlineMs: 20_000,
      file,
      line,
      ...about,
      body,
    });
  };
}
