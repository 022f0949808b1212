// SPDX-License-Identifier: Apache-2.0

/**
 * Would a mutant have changed anything in a check's calls? Asked of the calls that crossed the tap when the check ran on
 * the driver as it is. A check of which it changes no call cannot find it, and need not be run.
 */
import { Metadata } from "@grpc/grpc-js";
import type { Crossed, Interceptors, RawCall } from "../keeper/tap.ts";

/** An interceptor that has not answered within this time, in milliseconds, delays or hangs: that is a change. */
const AT_ONCE_MS = 20;

type Unary = (request: object, pass: (request?: object) => Promise<object>, raw: RawCall) => Promise<object>;

/** Whether these interceptors would have changed one of the calls, in the order in which they came. */
export async function changesAny(broken: Interceptors, calls: Crossed[]): Promise<boolean> {
  for (const call of calls) if (await changes(broken, call)) return true;
  return false;
}

async function changes(broken: Interceptors, call: Crossed): Promise<boolean> {
  // What becomes of a watch depends on when its events come.
  if (call.name === "WatchSandboxes") return broken.WatchSandboxes !== undefined;
  const interceptor = broken[call.name as keyof Interceptors] as Unary | undefined;
  if (!interceptor) return false;
  let passed = 0;
  let differs = false;
  const pass = (request = call.request): Promise<object> => {
    passed++;
    differs ||= !Bun.deepEquals(request, call.request);
    const { code, details } = call;
    const answer = call.response
      ? Promise.resolve(structuredClone(call.response))
      : Promise.reject(Object.assign(new Error(details), { code, details }));
    // An interceptor need not wait for what it passed on.
    answer.catch(() => {});
    return answer;
  };
  const asks = () => {
    differs = true;
    return Promise.reject(new Error("a replay asks nobody"));
  };
  const { bytes, authority } = call;
  const raw: RawCall = { request: bytes, metadata: call.metadata ?? new Metadata(), authority, ask: asks };
  const late = Symbol("late");
  const attempt = async () => interceptor(structuredClone(call.request), pass, raw);
  const answer = await Promise.race([
    attempt().catch((error: unknown) => ({ error })),
    Bun.sleep(AT_ONCE_MS).then(() => late),
  ]);
  if (answer === late || differs || passed !== 1) return true;
  const { error } = answer as { error?: { code?: number; details?: string } };
  if (error) return call.response !== undefined || error.code !== call.code || error.details !== call.details;
  return !Bun.deepEquals(answer, call.response);
}
