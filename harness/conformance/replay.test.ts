// SPDX-License-Identifier: Apache-2.0

/** Which mutants may be looked for together: those that change different places of a check's calls. */
import { Metadata, status } from "@grpc/grpc-js";
import { expect, test } from "bun:test";
import type { Crossed, Interceptors } from "../runtime/faults/tap.ts";
import { computeDriver } from "../../proto/contract.ts";
import { composed, type Mutant, refusal } from "./mutant.ts";
import { footprint, sideBySide } from "./replay.ts";

const service = computeDriver().ComputeDriver.service;
type Method = "GetSandbox" | "CreateSandbox" | "WatchSandboxes";
let seq = 0;

/** A call as it crossed a tap, from `at` on for `ms` milliseconds. */
function crossed(name: Method, at: number, ms: number, request: object, ...responses: object[]): Crossed {
  const { requestSerialize, requestDeserialize, responseSerialize, responseDeserialize } = service[name];
  const bytes = requestSerialize(request as never);
  const messages = responses.map((response) => responseDeserialize(responseSerialize(response as never)));
  return {
    seq: ++seq,
    name,
    at,
    ms,
    bytes,
    request: requestDeserialize(bytes),
    responses: messages.map((message, index) => ({ at: at + ms + index, message })),
    code: status.OK,
    details: "",
    metadata: new Metadata(),
    authority: "localhost",
  };
}

const box = (name: string) => ({ sandbox: { id: "1", name, status: { instance_id: "c" } } });
const get = () => crossed("GetSandbox", 0, 10, { sandbox_id: "1" }, box("a"));
const mutant = (make: () => Interceptors): Mutant => ({ name: "a mutant", foundBy: [], make });

const renamed = mutant(() => ({
  GetSandbox: async (_, pass) => {
    const { sandbox } = await pass();
    return { sandbox: { ...sandbox!, name: "b" } };
  },
}));
const moved = mutant(() => ({
  GetSandbox: async (_, pass) => {
    const { sandbox } = await pass();
    return { sandbox: { ...sandbox!, status: { ...sandbox!.status!, instance_id: "d" } } };
  },
}));
const refusing = mutant(() => ({ GetSandbox: () => Promise.reject(refusal("INTERNAL")) }));
const harmless = mutant(() => ({ GetSandbox: (_, pass) => pass() }));
const silent = mutant(() => ({ GetSandbox: () => Promise.withResolvers<never>().promise }));

test("what a mutant leaves as it is has no footprint", async () => {
  expect(await footprint(harmless, [[get()]])).toEqual(new Set());
  expect(await footprint(renamed, [[]])).toEqual(new Set());
});

test("a field that is changed is named, and the call and the driver it belongs to", async () => {
  const call = get();
  const [place, ...others] = await footprint(renamed, [[], [call]]);
  expect(others).toEqual([]);
  expect(place).toBe(`1/${call.seq}/heard/10/0/answer/sandbox/name`);
});

test("a mutant that lets a caller wait stands in everybody's way", async () => {
  expect(await footprint(silent, [[get()]])).toEqual(new Set([""]));
});

test("a call that is answered before the driver has answered went another way", async () => {
  const early = mutant(() => ({
    GetSandbox: async (_, pass) => (void pass(), box("a") as Awaited<ReturnType<typeof pass>>),
  }));
  expect((await footprint(early, [[get()]])).size).toBeGreaterThan(0);
});

test("calls overlap in a replay as they did", async () => {
  // Tells a watch nothing that comes while a create is under way.
  const busy = mutant(() => {
    let creating = false;
    return {
      CreateSandbox: (_, pass) => {
        creating = true;
        return pass().finally(() => (creating = false));
      },
      WatchSandboxes: (watch) => (event) => creating || watch.send(event),
    };
  });
  const watch = crossed("WatchSandboxes", 0, 5, {}, { sandbox: box("a") });
  const during = crossed("CreateSandbox", 1, 10, box("a"), {});
  const after = crossed("CreateSandbox", 7, 10, box("a"), {});
  expect(await footprint(busy, [[watch, during]])).not.toEqual(new Set());
  expect(await footprint(busy, [[watch, after]])).toEqual(new Set());
});

test("mutants of different fields go together, those of the same field or of a whole answer do not", async () => {
  const lives = [[get()]];
  const groups = async (...mutants: Mutant[]) =>
    sideBySide(
      new Map(await Promise.all(mutants.map(async (each) => [each, await footprint(each, lives)] as const))),
    );
  expect(await groups(renamed, moved)).toEqual([[renamed, moved]]);
  expect(await groups(renamed, { ...renamed })).toHaveLength(2);
  expect(await groups(renamed, refusing, moved)).toEqual([[renamed, moved], [refusing]]);
});

test("composed, mutants are broken in all their ways, and a request passes through all of them", async () => {
  const [asksForB, asksForC] = ["b", "c"].map((suffix) =>
    mutant(() => ({
      GetSandbox: ({ sandbox_id }, pass) => pass({ sandbox_id: sandbox_id + suffix, sandbox_name: "" }),
    })),
  );
  const { GetSandbox } = composed([asksForB!, renamed, asksForC!, moved]);
  const asked: unknown[] = [];
  const driver = async (request: unknown) => {
    asked.push(request);
    return get().responses[0]!.message as never;
  };
  const raw = { request: Buffer.of(), metadata: new Metadata(), authority: "", ask: () => Promise.reject() };
  const answer = await GetSandbox!({ sandbox_id: "a", sandbox_name: "" }, (request) => driver(request), raw);
  expect(asked).toEqual([{ sandbox_id: "abc", sandbox_name: "" }]);
  expect(answer).toMatchObject({ sandbox: { name: "b", status: { instance_id: "d" } } });
});
