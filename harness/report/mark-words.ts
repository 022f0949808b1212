// SPDX-License-Identifier: Apache-2.0

/** What was done to a stack, in words. */
import { codeName } from "../../proto/contract.ts";
import type { EngineRule, Rule } from "../base/faults.ts";
import { plural, took } from "../base/text.ts";

/** What was done to a stack. The rule of a fault, which is recorded as it is, becomes words. */
export function markWords(what: string): string {
  const [, fault = "", json = ""] = /^(fault [^:]+: )(\{.*\})$/s.exec(what) ?? [];
  try {
    return json ? `${fault}${ruleWords(JSON.parse(json))}` : what;
  } catch {
    return what;
  }
}

function ruleWords(rule: Partial<Rule & EngineRule>): string {
  const { delayMs, fail, hang, drop, cut, replace, duplicate, reorder, end, response, from, times } = rule;
  const words = [
    delayMs !== undefined && `delay ${took(delayMs)}`,
    fail && `fail with ${fail.status ?? codeName(fail.code)}${fail.message && ` "${fail.message}"`}`,
    hang && "hang",
    drop && "drop connections",
    cut && "break off the answer",
    replace && `say ${JSON.stringify(replace.to)} instead of ${JSON.stringify(replace.from)}`,
    duplicate && "duplicate",
    reorder && "reorder",
    end && `end after ${plural(end.after, "event")}${end.code ? ` with ${codeName(end.code)}` : ""}`,
    response && `answer with ${JSON.stringify(response)}`,
  ];
  const which = [
    from !== undefined && `from call ${from}`,
    times !== undefined && (times === 1 ? "once" : `${times} times`),
  ];
  return [...words, ...which].filter(Boolean).join(", ");
}
