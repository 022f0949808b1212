// SPDX-License-Identifier: Apache-2.0

/** What scenarios of several files share. */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { dirname } from "node:path";
import { expect } from "bun:test";
import { eventually, HarnessError, parts, type RunningStack, type Sandbox } from "../../harness.ts";
import { Driver } from "../../harness/conformance/driver.ts";
import { Engine } from "../../harness/runtime/engine.ts";
import type { Struct } from "../../proto/v0.0/types/google/protobuf/Struct.ts";
import type { Value } from "../../proto/v0.0/types/google/protobuf/Value.ts";

type Json = string | number | boolean | null | Json[] | { [key: string]: Json };

/** A plain object as the contract's Struct. */
export const struct = (object: { [key: string]: Json }): Struct => ({
  fields: Object.fromEntries(Object.entries(object).map(([key, value]) => [key, toValue(value)])),
});

function toValue(value: Json): Value {
  if (value === null) return { nullValue: 0 };
  if (Array.isArray(value)) return { listValue: { values: value.map(toValue) } };
  if (typeof value === "object") return { structValue: struct(value) };
  if (typeof value === "string") return { stringValue: value };
  return typeof value === "number" ? { numberValue: value } : { boolValue: value };
}

/** Why a scenario does not apply: it reads /proc. */
export const withoutProc = process.platform !== "linux" && "it reads /proc, which only Linux has";

/** Why a scenario does not apply: it is about the Podman driver, and another one is at work. */
export const withoutPodmanDriver =
  parts().driver.label.endsWith("(custom)") && "it is about the Podman driver's own configuration or engine";

/** Why a scenario does not apply: it restarts the engine, which all stacks of a run share. */
export const withForeignEngine =
  Boolean(process.env.OPENSHELL_PODMAN_SOCKET) && parts().engine.real
    ? "the engine is somebody else's service, which is not ours to restart"
    : false;

/** Why a scenario does not apply: the engine's networks have no bridge on this machine. */
export const withoutBridges =
  (!parts().engine.real && "the fake engine's networks are this machine's loopback") ||
  (process.getuid?.() !== 0 && "a rootless Podman makes no bridge on this machine");

// Engine

/** What the engine knows of a sandbox's container, as far as scenarios ask. */
export interface Inspection {
  Id: string;
  Config: { Env: string[]; Labels: Record<string, string>; Cmd: string[] };
  State: { Status: string; Pid: number };
}

/** The engine of a stack, asked directly. */
export const engineOf = ({ info }: RunningStack): Engine => new Engine(info.engineSocket);

/** A sandbox's container as the engine has it. @throws HarnessError when there is none. */
export async function inspect(stack: RunningStack, sandboxId: string): Promise<Inspection> {
  const engine = engineOf(stack);
  const ours = (await engine.containers([stack.info.network])).find(
    ({ Labels }) => Labels?.["openshell.ai/sandbox-id"] === sandboxId,
  );
  if (!ours) throw new HarnessError(`The engine has no container of sandbox ${sandboxId}`);
  return engine.call<Inspection>("GET", `containers/${ours.Id}/json`);
}

/** Does something to a sandbox's container behind its driver's back. */
export async function toContainer(
  stack: RunningStack,
  sandboxId: string,
  deed: "kill" | "stop" | "pause" | "unpause" | "remove",
): Promise<void> {
  const { Id } = await inspect(stack, sandboxId);
  const engine = engineOf(stack);
  if (deed === "remove")
    await engine.call("DELETE", `containers/${Id}`, { query: { force: "true", timeout: "0" } });
  else if (deed === "kill")
    await engine.call("POST", `containers/${Id}/kill`, { query: { signal: "SIGKILL" } });
  else await engine.call("POST", `containers/${Id}/${deed}`, { query: { timeout: "1" } });
}

/**
 * Removes a sandbox's container behind the driver's back, and waits until the driver tells of it: news that are still
 * under way would reach whoever watches next.
 */
export async function removeUnseen(stack: RunningStack, sandboxId: string): Promise<void> {
  const driver = new Driver(stack.info.driverSocket);
  try {
    const watch = driver.watch();
    await watch.until("a watch that knows the sandbox", () => watch.of(sandboxId).length > 0);
    await toContainer(stack, sandboxId, "remove");
    await watch.until("a Deleted event of it", () => watch.deleted(sandboxId));
  } finally {
    driver.close();
  }
}

/** What a sandbox has on the engine, a line each. */
export const onEngine = ({ keeper, info }: RunningStack, sandboxId: string): Promise<string[]> =>
  keeper.call("leftovers", info.id, [sandboxId]);

/** Waits until nothing of a sandbox is on the engine any more. */
export async function nothingLeft(stack: RunningStack, sandboxId: string): Promise<void> {
  const look = async () => expect(await onEngine(stack, sandboxId)).toEqual([]);
  await eventually(look, { what: "nothing of the sandbox on the engine", deadlineMs: 3_000 });
}

// What users see

/** A sandbox's Ready condition, as it was last seen. */
export const readyCondition = ({ seen }: Sandbox) =>
  seen.status?.conditions.find(({ type }) => type === "Ready");

/** A sandbox whose every start of its main process writes a line into the workspace's file `starts`. */
export const COUNTS_STARTS = [
  "sh",
  "-c",
  "echo begun >> starts; trap 'exit 0' TERM; while :; do sleep 1 & wait; done",
];

/**
 * Waits until the gateway watches the driver, which it tries every 2 s, and has been told of these sandboxes: what is
 * deleted before stays DELETING, and what is started before may be failed by news of its last end.
 */
export async function watched(stack: RunningStack, ...sandboxes: Sandbox[]): Promise<void> {
  const open = async () => {
    const last = (await stack.calls()).findLast(({ method }) => method === "WatchSandboxes");
    if (!last || last.status) throw new Error(`the last one ended with ${last?.status}`);
    const untold = sandboxes.find(({ id }) => !JSON.stringify(last.responses).includes(id));
    if (untold) throw new Error(`it has not told of ${untold.name}`);
  };
  await eventually(open, { what: "the gateway to watch the driver again", deadlineMs: 10_000 });
}

/** Starts a gateway that has ended, and waits until this client has found it again. */
export async function startGateway(stack: RunningStack): Promise<void> {
  await stack.control("gateway", "start");
  await eventually(() => stack.gateway.health(), { what: "the gateway to answer", deadlineMs: 10_000 });
}

/** Waits until the gateway has asked the driver for something after call number `since`. */
export async function asked(stack: RunningStack, method: string, since = 0): Promise<void> {
  const look = async () => expect((await stack.calls(since)).map((call) => call.method)).toContain(method);
  await eventually(look, { what: `the gateway to ask for ${method}` });
}

/** The environment that a container was given. */
export const environmentOf = ({ Config }: Inspection): Record<string, string> =>
  Object.fromEntries(Config.Env.map((entry) => entry.split(/=(.*)/s).slice(0, 2)));

// Processes

/** A process and all those that it descends from, nearest first (Linux). */
export function ancestry(pid: number): number[] {
  if (pid <= 0) return [];
  // The name in parentheses may hold spaces; the parent's id is the second field after it.
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  return [pid, ...ancestry(Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]))];
}

/** The flags of a listening socket: __SO_ACCEPTCON. */
const ACCEPTING = "00010000";

/**
 * The processes that listen on a Unix socket (Linux). The kernel knows a socket by the path at which it was bound; a
 * driver may bind it under another name in the same folder and rename it, so that it appears with its final mode.
 * @throws HarnessError when there is none: the kernel's table can miss one that is there while it changes.
 */
export function listenersOn(socket: string): number[] {
  const listening = readFileSync("/proc/net/unix", "utf8")
    .split("\n")
    .flatMap((line) => {
      // The path is the rest of the line, blanks and all.
      const [, flags, inode, path = ""] = /^\S+: \S+ \S+ (\S+) \S+ \S+ +(\d+) (.+)$/.exec(line) ?? [];
      return flags === ACCEPTING && dirname(path) === dirname(socket) ? [`socket:[${inode}]`] : [];
    });
  const pids = readdirSync("/proc").filter((name) => /^\d+$/.test(name));
  const found = pids.filter((pid) => descriptorsOf(pid).some((target) => listening.includes(target)));
  if (found.length === 0) throw new HarnessError(`Nobody listens on ${socket}`);
  return found.map(Number);
}

/** What a process has open, as the kernel writes it: "socket:[123]". */
export function descriptorsOf(pid: string | number): string[] {
  try {
    return readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
      try {
        return [readlinkSync(`/proc/${pid}/fd/${fd}`)];
      } catch {
        return [];
      }
    });
  } catch {
    // Gone meanwhile, or another user's.
    return [];
  }
}
