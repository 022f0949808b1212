// SPDX-License-Identifier: Apache-2.0

/**
 * Faults in words, as people type them: `StopSandbox: delay 3s`, `WatchSandboxes: end after 5 events`,
 * `CreateSandbox: fail UNAVAILABLE no room, on call 2`. Each becomes a rule of the tap.
 */
import { status } from "../../../proto/grpc.ts";
import { HarnessError } from "../../base/errors.ts";
import { computeDriver } from "../../../proto/contract.ts";
import type { Rule } from "../../base/faults.ts";

/** What a fault can be, for help and for errors. */
export const FAULTS = [
  "delay 3s                 wait before the call is passed on (ms, s)",
  "fail CODE [MESSAGE]      answer with that status, such as UNAVAILABLE",
  "hang                     never answer",
  "drop                     break the gateway's connections",
  "duplicate                pass the call on twice; of a watch, send each event twice",
  "reorder                  of a watch: swap events that come together",
  "end after 5 events [CODE]  of a watch: end it, with OK or that status",
  "rewrite FIELD=VALUE      set a field of each response: sandbox.status.deleting=true; null unsets",
];

/** Which calls a fault befalls: `…, on call 2`, `…, from call 2`, `…, 3 times`. */
const WHICH = /^(.*?)(?:,?\s+(?:(on|from)\s+call\s+(\d+)|(\d+)\s+times|(once)))?$/s;

/**
 * Reads one fault.
 * @throws HarnessError that says what can be said.
 */
export function parseFault(text: string): Rule {
  const [, method = "", what = ""] = /^\s*(\w+)\s*:\s*(.+?)\s*$/s.exec(text) ?? [];
  const wrong = (problem: string) =>
    new HarnessError(
      `fault "${text}": ${problem}. A fault is METHOD: WHAT[, on call N | from call N | N times]`,
    );
  if (!method) throw wrong("METHOD: WHAT was expected");
  const methods = Object.keys(computeDriver().ComputeDriver.service);
  if (!methods.includes(method)) throw wrong(`there is no method ${method}; there are ${methods.join(", ")}`);
  const [, action = "", word, call, times, once] = WHICH.exec(what)!;
  if ([call, times].some((number) => number !== undefined && !/^[1-9]\d{0,5}$/.test(number)))
    throw wrong("calls are counted from 1, to 999999");
  const effect = parseAction(action);
  if (typeof effect === "string") throw wrong(effect);
  if (!effect) throw wrong(`it can be\n  ${FAULTS.join("\n  ")}\n`);
  if (("reorder" in effect || "end" in effect) && method !== "WatchSandboxes")
    throw wrong(`${method} is no watch, and has no events`);
  return {
    method,
    ...effect,
    ...(call && { from: Number(call) }),
    ...(word === "on" || once ? { times: 1 } : times ? { times: Number(times) } : {}),
  };
}

/** The effect of a fault; text that says what is wrong with one that is nearly right, or nothing for any other. */
function parseAction(action: string): Omit<Rule, "method"> | string | undefined {
  const [verb = "", ...words] = action.split(/\s+/);
  const rest = words.join(" ");
  switch (verb) {
    case "delay": {
      const [, amount, unit] = /^(\d+(?:\.\d+)?)\s*(ms|s)$/.exec(rest) ?? [];
      if (!amount) return undefined;
      const delayMs = Number(amount) * (unit === "s" ? 1_000 : 1);
      return delayMs <= MOST_DELAY_MS ? { delayMs } : "a delay is an hour at most; hang never answers";
    }
    case "fail": {
      const [name = "", ...message] = words;
      const code = codeOf(name);
      if (code === undefined) return noStatus(name);
      return { fail: { code, message: message.join(" ") || "a fault on purpose" } };
    }
    case "hang":
    case "drop":
    case "duplicate":
    case "reorder":
      return rest ? undefined : { [verb]: true };
    case "end": {
      const [, after, name] = /^after (\d+) events?(?: (\w+))?$/.exec(rest) ?? [];
      const code = name === undefined ? undefined : codeOf(name);
      if (after === undefined) return undefined;
      if (name !== undefined && code === undefined) return noStatus(name);
      return { end: { after: Number(after), ...(code !== undefined && { code }) } };
    }
    case "rewrite": {
      const [, path = "", value = ""] = /^([\w.]+)=(.*)$/s.exec(rest) ?? [];
      return path ? { response: nested(path.split("."), literal(value)) } : undefined;
    }
    default:
      return undefined;
  }
}

/** A timer holds 2^31 ms; long before that a delay is none. */
const MOST_DELAY_MS = 3_600_000;

const noStatus = (name: string): string => {
  const known = Object.keys(status).filter((key) => codeOf(key) !== undefined);
  return `${name ? `${name} is no status` : "a status was expected"}; there are ${known.join(", ")}`;
};

const codeOf = (name: string): status | undefined =>
  typeof status[name as keyof typeof status] === "number" ? status[name as keyof typeof status] : undefined;

const nested = (path: string[], value: unknown): Record<string, unknown> =>
  path.reduceRight<unknown>((inner, key) => ({ [key]: inner }), value) as Record<string, unknown>;

/** JSON where it is JSON, else the text as it stands. */
function literal(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
