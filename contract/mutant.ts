// SPDX-License-Identifier: Apache-2.0

/**
 * Mutants: drivers broken on purpose, each in one way, by a few lines on the tap between a check and the driver. They
 * prove that the checks bite: every mutant must be found by exactly the checks that it names.
 */
import { status } from "@grpc/grpc-js";
import type { Interceptors } from "../keeper/tap.ts";

/** A broken driver. */
export interface Mutant {
  /** What it does wrong, as a sentence. */
  name: string;
  /** The ids of all the checks that must find it. */
  foundBy: string[];
  /** What is wrong, made anew for each check, so that a mutant may remember what it saw. */
  make: () => Interceptors;
}

/** Every mutant that is loaded. */
export const mutants: Mutant[] = [];

/** Adds a mutant. One that remembers something is a function that returns its interceptors. */
export function mutant(name: string, foundBy: string[], broken: Interceptors | (() => Interceptors)): void {
  if (mutants.some((known) => known.name === name)) throw new Error(`There are two mutants "${name}"`);
  mutants.push({ name, foundBy, make: typeof broken === "function" ? broken : () => broken });
}

/** What an interceptor throws to refuse a call: `throw refusal("NOT_FOUND")`. */
export function refusal(code: keyof typeof status, details = "broken on purpose"): Error {
  return Object.assign(new Error(details), { code: status[code], details });
}
