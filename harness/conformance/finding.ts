// SPDX-License-Identifier: Apache-2.0

/** The words in which a check finds a driver right or wrong. */

let patience = 1;

/** What a deadline is for now, in milliseconds: mutants that answer nothing are waited for less long. */
export const patient = (deadlineMs: number): number => deadlineMs * patience;

/** Makes every wait for a driver longer or shorter, by this factor. */
export function setPatience(factor: number): void {
  patience = factor;
}

// Findings

/** The driver broke the rule. */
export class Violation extends Error {
  constructor(
    readonly expected: string,
    readonly seen: string,
    /** The refusal that was seen, if it was one. */
    readonly refused?: Refused,
  ) {
    super(`expected ${expected}\n     saw ${seen}`);
  }
}

/** The rule cannot be asked of this driver, or not here; the message says why. */
export class NotApplicable extends Error {}

/** A value as it is shown in a finding, in one line of bounded length. */
export function show(value: unknown): string {
  const text = typeof value === "string" ? value : Bun.inspect(value, { depth: 6, compact: true });
  // A driver's answer may be megabytes of blanks.
  const line = text.slice(0, 4_000).replace(/[ \t]{0,100}\n\s{0,100}/g, " ");
  return line.length > 400 || text.length > 4_000 ? `${line.slice(0, 400)}…` : line;
}

/** @throws Violation unless it holds. */
export function holds(fact: boolean, expected: string, seen: unknown): asserts fact {
  if (!fact) throw new Violation(expected, show(seen));
}

/** @throws Violation unless both are deeply equal. `what` names the thing, such as "the snapshot's name". */
export function same(what: string, seen: unknown, expected: unknown): void {
  if (!Bun.deepEquals(seen, expected)) throw new Violation(`${what}: ${show(expected)}`, show(seen));
}

/**
 * Waits for a call to be refused.
 * @returns the refusal, for a look at its message.
 * @throws Violation when the call succeeds or fails with none of `codes`.
 */
export async function refuses(call: Promise<unknown>, ...codes: string[]): Promise<Refused> {
  const wanted = codes.join(" or ");
  const answer = await call.catch((error: unknown) => {
    if (error instanceof Refused) return error;
    throw error;
  });
  if (!(answer instanceof Refused)) throw new Violation(wanted, `OK ${show(answer)}`);
  if (!codes.includes(answer.code)) throw new Violation(wanted, answer.message, answer);
  return answer;
}

/** Resolves with the refusal of a call, if it is refused: that is an answer, too. @throws whatever else the call throws */
export async function refusalOf(call: Promise<unknown>): Promise<Refused | undefined> {
  try {
    await call;
    return undefined;
  } catch (error) {
    if (error instanceof Refused) return error;
    throw error;
  }
}

/** What came of a call: "OK", or the name of its code. @throws whatever but a refusal the call throws */
export const codeOf = async (call: Promise<unknown>): Promise<string> =>
  (await refusalOf(call))?.code ?? "OK";

/** A call that a driver answered with an error status. */
export class Refused extends Error {
  constructor(
    readonly method: string,
    /** The status' name, such as "NOT_FOUND". */
    readonly code: string,
    readonly details: string,
  ) {
    super(`${code}: ${details}`);
  }
}
