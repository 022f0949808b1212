// SPDX-License-Identifier: Apache-2.0

/**
 * Mutants: drivers broken on purpose, each in one way, by a few lines on the tap between a check and the driver. They
 * prove that the checks bite: every mutant must be found by exactly the checks that it names.
 */
import type { MethodDefinition } from "@grpc/grpc-js";
import type { Interceptors, UnaryInterceptor } from "../runtime/faults/tap.ts";
import { computeDriver } from "../../proto/contract.ts";
import { status } from "../../proto/grpc.ts";

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

/** One driver that is broken in the ways of all of them, made anew. The first is the nearest to the caller. */
export function composed(broken: Mutant[]): Interceptors {
  const parts = broken.map(({ make }) => make());
  const { WatchSandboxes: watched, ...service } = computeDriver().ComputeDriver.service;
  const composition: Record<string, UnaryInterceptor> & Pick<Interceptors, "WatchSandboxes"> = {};
  for (const [name, definition] of Object.entries(service)) {
    const method = definition as MethodDefinition<object, object>;
    const interceptors = parts.flatMap((part) => (part as typeof composition)[name] ?? []);
    const [last, ...others] = interceptors.toReversed();
    if (!last) continue;
    // Between two of them a message crosses a socket, as it were: unset fields come out as their defaults.
    const received = async (answer: Promise<object>) =>
      method.responseDeserialize(method.responseSerialize(await answer));
    const sent = (request: object) => method.requestDeserialize(method.requestSerialize(request));
    composition[name] = others.reduce<UnaryInterceptor>(
      (inner, outer) => (request, pass, raw) =>
        outer(request, (changed = request) => received(inner(sent(changed), pass, raw)), raw),
      (request, pass, raw) => last(request, (changed = request) => pass(changed), raw),
    );
  }
  const watchers = parts.flatMap(({ WatchSandboxes }) => WatchSandboxes ?? []);
  const { responseSerialize, responseDeserialize } = watched;
  if (watchers.length > 0)
    composition.WatchSandboxes = (watch, raw) =>
      watchers.reduce<ReturnType<(typeof watchers)[number]>>(
        (hear, watcher) =>
          watcher({ ...watch, send: (event) => hear(responseDeserialize(responseSerialize(event))) }, raw),
        watch.send,
      );
  return composition as Interceptors;
}
