// SPDX-License-Identifier: Apache-2.0

/**
 * What would a mutant have changed in a check's calls? Asked of the calls that crossed the tap when the check ran on the
 * driver as it is. A check in which it changes nothing cannot find it; and mutants that change different things can be
 * looked for together, since none of them hides another.
 */
import { status } from "../../proto/grpc.ts";
import type { Mutant } from "./mutant.ts";
import type { Crossed, Interceptors, RawCall, TappedWatch, UnaryInterceptor } from "../runtime/faults/tap.ts";

/** A caller that has not heard by then, in milliseconds, is kept waiting by the mutant. */
const AT_ONCE_MS = 20;

/** A check's calls, of each driver that it had: each has a memory, and so a mutant, of its own. */
export type Lives = Crossed[][];

/**
 * The places that a mutant changes, such as `0/3/heard/sandbox/name` for the name in the answer to the fourth call of
 * the first driver. One that is changed as a whole stands for all in it, and the empty one for everything.
 */
export type Footprint = Set<string>;

/**
 * What the mutant would have changed: nothing, if the calls would have gone the same way. What it does after a while, or
 * when somebody is slow, is not seen.
 */
export async function footprint(mutant: Mutant, lives: Lives): Promise<Footprint> {
  const places: Footprint = new Set();
  for (const [life, calls] of lives.entries()) {
    const broken = mutant.make();
    const concerned = calls.filter(({ name }) => name in broken);
    const changed = await replay(broken, concerned);
    // Nobody knows how it would have gone on.
    if (changed.late) return new Set([""]);
    const asItWas = await unchanged(calls);
    for (const { seq } of concerned)
      for (const place of differences(changed.courses[seq], asItWas[seq]))
        places.add(`${life}/${seq}${place}`);
  }
  return places;
}

const replayed = new WeakMap<Crossed[], Record<string, Course>>();

/** The same calls through no interceptor, replayed once for all mutants: there no call has to do with another. */
async function unchanged(calls: Crossed[]): Promise<Record<string, Course>> {
  const courses = replayed.get(calls) ?? (await replay({}, calls)).courses;
  replayed.set(calls, courses);
  return courses;
}

/** Puts mutants into groups of which no two change the same place, those that change little first. */
export function sideBySide(changing: Map<Mutant, Footprint>): Mutant[][] {
  const groups: { members: Mutant[]; places: Footprint; around: Footprint }[] = [];
  for (const [mutant, places] of [...changing].toSorted(([, a], [, b]) => a.size - b.size)) {
    const around = new Set([...places].flatMap(upwards));
    const apart = (group: { places: Footprint; around: Footprint }) =>
      places.isDisjointFrom(group.around) && around.isDisjointFrom(group.places);
    const group = groups.find(apart) ?? { members: [], places: new Set(), around: new Set() };
    if (group.members.length === 0) groups.push(group);
    group.members.push(mutant);
    group.places = group.places.union(places);
    group.around = group.around.union(around);
  }
  return groups.map(({ members }) => members);
}

/** A place, and all that it lies in. */
function upwards(place: string): string[] {
  const parts = place.split("/");
  return parts.map((_, index) => parts.slice(0, index + 1).join("/")).concat("");
}

/** Where two values differ, as deep as both have the same form. */
function* differences(one: unknown, other: unknown, at = ""): Generator<string> {
  if (Bun.deepEquals(one, other)) return;
  const keys = [one, other].map((value) => (isPlain(value) ? Object.keys(value) : undefined));
  const alike = keys[0] && keys[1] && Array.isArray(one) === Array.isArray(other);
  if (!alike || (Array.isArray(one) && keys[0]!.length !== keys[1]!.length)) return yield at;
  for (const key of new Set(keys.flat() as string[]))
    yield* differences((one as Fields)[key], (other as Fields)[key], `${at}/${key}`);
}

type Fields = Record<string, unknown>;
const isPlain = (value: unknown): value is object =>
  typeof value === "object" && value !== null && !Buffer.isBuffer(value);

/** What the two ends of a call see of it: the requests that reach the driver, and what the caller hears at which time. */
interface Course {
  passed: object[];
  asked: number;
  heard: Record<number, unknown[]>;
}

/** Has the calls come again, with all that overlapped, through these interceptors. `late`: a caller waits in vain. */
async function replay(
  broken: Interceptors,
  calls: Crossed[],
): Promise<{ courses: Record<string, Course>; late: boolean }> {
  const courses: Record<string, Course> = {};
  const steps: Step[] = [];
  let now = 0;
  let watches = 0;
  for (const call of calls) {
    const course: Course = { passed: [], asked: 0, heard: {} };
    const hear = (what: unknown) => void (course.heard[now] ??= []).push(what);
    const { bytes: request, metadata, authority } = call;
    const ask = () => {
      course.asked++;
      return Promise.reject(new Error("a replay asks nobody"));
    };
    const raw = { request, metadata, authority, ask };
    if (call.name === "WatchSandboxes") steps.push(...watched(call, broken, ++watches, hear, raw));
    else steps.push(...asked(call, broken, course, hear, raw));
    courses[call.seq] = course;
  }
  for (const step of steps.toSorted((a, b) => a.at - b.at)) {
    now = step.at;
    step.take();
    await new Promise(setImmediate);
  }
  const waits = ({ seq, name, ms }: Crossed) =>
    name !== "WatchSandboxes" && ms !== undefined && Object.keys(courses[seq]!.heard).length === 0;
  if (calls.some(waits)) await Bun.sleep(AT_ONCE_MS);
  return { courses, late: calls.some(waits) };
}

/** What happened at a moment. */
interface Step {
  at: number;
  take: () => void;
}

/** A unary call: it came, and the driver answered. */
function asked(call: Crossed, broken: Interceptors, course: Course, hear: Hear, raw: RawCall): Step[] {
  const { at, ms, code, details } = call;
  const interceptor = broken[call.name as keyof Interceptors] as UnaryInterceptor | undefined;
  const driver = Promise.withResolvers<object>();
  // An interceptor need not wait for what it passed on.
  driver.promise.catch(() => {});
  const pass = async (request = call.request): Promise<object> => {
    course.passed.push(request);
    return structuredClone(await driver.promise);
  };
  const come = async () => {
    try {
      const request = structuredClone(call.request);
      hear({ answer: await (interceptor ? interceptor(request, pass, raw) : pass()) });
    } catch (error) {
      const { code, details } = error as { code?: number; details?: string };
      hear({ error: { code, details } });
    }
  };
  const answer = () => {
    const [response] = call.responses;
    if (response) driver.resolve(response.message);
    else driver.reject(Object.assign(new Error(details), { code, details }));
  };
  return [{ at, take: () => void come() }, ...(ms === undefined ? [] : [{ at: at + ms, take: answer }])];
}

/** A watch: it was opened, and events came. */
function watched(call: Crossed, broken: Interceptors, number: number, hear: Hear, raw: RawCall): Step[] {
  let over = false;
  const send = (event: object) => over || hear({ event: structuredClone(event) });
  const watch: TappedWatch = {
    number,
    send,
    end: (code = status.OK) => {
      if (!over) hear({ end: code });
      over = true;
    },
    holdHeaders: () => hear("no headers"),
    outlive: () => hear("no end"),
    unread: () => 0,
  };
  let onEvent: (event: never) => void = send;
  const open = () => (onEvent = broken.WatchSandboxes?.(watch, raw) ?? send);
  const come = (event: object) => onEvent(structuredClone(event) as never);
  return [
    { at: call.at, take: open },
    ...call.responses.map(({ at, message }) => ({ at, take: () => come(message) })),
  ];
}

type Hear = (what: unknown) => void;
