// SPDX-License-Identifier: Apache-2.0

/** What a run leaves on an engine that does not let go of it at once, or at all. */
import { afterAll, beforeEach, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { podman } from "../conformance/backend.ts";
import { belongings, Engine, removeBelongings } from "./engine.ts";
import { Run } from "./run.ts";
import { RUN_LABEL } from "./marks.ts";

const folder = mkdtempSync(join(tmpdir(), "en-"));
/** How often it refuses to remove what has this name. */
let refusals: Record<string, number> = {};
let removed: string[] = [];

const server = Bun.serve({
  unix: join(folder, "engine.sock"),
  fetch(request) {
    const name = new URL(request.url).pathname.split("/").at(-1)!;
    if ((refusals[name] ?? 0) > 0) {
      refusals[name]!--;
      return Response.json({ cause: "is being used", message: `${name} is being used` }, { status: 500 });
    }
    if (name === "unknown") return Response.json({ message: "no such volume" }, { status: 404 });
    removed.push(name);
    return new Response(null, { status: 204 });
  },
});
const engine = new Engine(join(folder, "engine.sock"));

beforeEach(() => {
  refusals = {};
  removed = [];
});
afterAll(() => {
  void server.stop(true);
  rmSync(folder, { recursive: true });
});

test("what is gone already is fine, and what the engine is busy with is removed later", async () => {
  refusals = { c1: 2 };
  await removeBelongings(engine, [
    { kind: "container", name: "c1" },
    { kind: "volume", name: "unknown" },
    { kind: "network", name: "n1" },
  ]);
  expect(removed).toEqual(["c1", "n1"]);
});

test("what the engine does not let go of is named, with its reason, and keeps nothing else", async () => {
  refusals = { v1: Infinity };
  const removing = removeBelongings(
    engine,
    [
      { kind: "volume", name: "v1" },
      { kind: "secret", name: "s1" },
    ],
    50,
  );
  await expect(removing).rejects.toThrow(/remove volume v1: not within 50 ms\n.*v1 is being used/);
  expect(removed).toEqual(["s1"]);
});

// What belongs to whom

const MINE = "0f0e0d0c-0b0a-4908-8706-050403020100";
const THEIRS = "0f0e0d0c-0b0a-4908-8706-050403020101";

/** An engine that holds other people's things beside ours, and takes no notice of filters. */
function sharedEngine(labels: Record<string, string> = {}): Engine {
  const socket = join(folder, `${crypto.randomUUID()}.sock`);
  const container = { Id: "c0ffee", Names: ["box"], State: "running", Labels: labels, Networks: ["ours"] };
  const lists: Record<string, unknown> = {
    containers: [container, { ...container, Id: "beef", Names: ["theirs"], Networks: ["podman"] }],
    volumes: [
      { Name: `openshell-sandbox-${MINE}-workspace` },
      { Name: `openshell-sandbox-${MINE}0-workspace` },
      { Name: `openshell-sandbox-${THEIRS}-workspace` },
      { Name: "openshell-customer-data" },
      { Name: `backup-${MINE}` },
    ],
    secrets: [`openshell-token-${MINE}`, `openshell-token-${THEIRS}`].map((Name) => ({ Spec: { Name } })),
    networks: [
      { name: "ours", labels: { [RUN_LABEL]: "0badcafe" } },
      { name: "theirs", labels: { [RUN_LABEL]: "0badcaff" } },
      { name: "podman" },
    ],
  };
  const server = Bun.serve({
    unix: socket,
    fetch: (request) => Response.json(lists[new URL(request.url).pathname.split("/").at(-2)!]),
  });
  afterAll(() => void server.stop(true));
  return new Engine(socket);
}

test("what a sandbox left is what holds its whole id in its name, and nothing that only resembles it", async () => {
  const things = await belongings(sharedEngine(), ["ours"], [MINE]);
  expect(things.map(({ kind, name }) => `${kind} ${name}`)).toEqual([
    "container box",
    `volume openshell-sandbox-${MINE}-workspace`,
    `secret openshell-token-${MINE}`,
    "network ours",
  ]);
});

test.each(["-", "", "a", "customer", "openshell", MINE.slice(0, 8), MINE.toUpperCase()])(
  "an id that is no UUID, %j, belongs to nothing on a shared engine",
  async (id) => {
    expect(await belongings(sharedEngine(), [], [id])).toEqual([]);
  },
);

test("the label of a container gives the run no volume and no secret of a sandbox that the run did not create", async () => {
  const engine = sharedEngine({ "openshell.ai/sandbox-id": THEIRS });
  const things = await belongings(engine, ["ours"], [MINE]);
  expect(things.filter(({ name }) => name.includes(THEIRS))).toEqual([]);
});

test("a run's networks are those with its label, also on an engine that does not filter", async () => {
  const path = join(folder, "0badcafe");
  mkdirSync(path);
  expect(await sharedEngine().networks(Run.open(path))).toEqual(["ours"]);
});

test("a check's Podman backend finds, ends and removes what has the sandbox's label, and nothing else", async () => {
  const backend = podman(sharedEngine({ "openshell.ai/sandbox-id": THEIRS }));
  expect(await backend.list!(MINE)).toEqual([
    `volume openshell-sandbox-${MINE}-workspace`,
    `volume backup-${MINE}`,
    `secret openshell-token-${MINE}`,
  ]);
  await expect(backend.kill!(MINE)).rejects.toThrow("podman has none with its id");
  expect(await backend.list!("")).toEqual([]);
});

test("a thing's name reaches the engine as a name, whatever is in it", async () => {
  await removeBelongings(engine, [{ kind: "volume", name: "../images/all" }]);
  expect(removed).toEqual(["..%2Fimages%2Fall"]);
});
