// SPDX-License-Identifier: Apache-2.0

/** Errors that a user can act on, and the exit codes. */
import { readableError } from "./readable.ts";

/** Exit codes: a scenario failed, the harness or the machine did (bad settings too), or something was left behind. */
export const EXIT = { ok: 0, failed: 1, error: 2, leftovers: 3 } as const;

/** What a user can act on: what was tried, expected and seen. Printed without a stack trace, exit code 2. */
export class HarnessError extends Error {
  override name = "HarnessError";
}

/** Ends the process as an error that a user can act on deserves; anything else is a bug and shows where it is. */
export function fail(error: unknown): never {
  const clean = readableError(error);
  if (error instanceof HarnessError) console.error(`openshell-e2e: ${clean.message}`);
  else console.error(clean);
  process.exit(EXIT.error);
}
