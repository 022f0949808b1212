// SPDX-License-Identifier: Apache-2.0

/** What scenarios of several files share. */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { dirname } from "node:path";
import { HarnessError, parts, type RunningStack } from "../../harness.ts";
import { Engine } from "../../keeper/engine.ts";
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
  parts.driver.label.endsWith("(custom)") && "it is about the Podman driver's own configuration or engine";

// Engine

/** What the engine knows of a sandbox's container, as far as scenarios ask. */
export interface Inspection {
  Id: string;
  Config: { Env: string[]; Labels: Record<string, string>; Cmd: string[] };
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

/**
 * The processes that listen on a Unix socket (Linux). The kernel knows a socket by the path at which it was bound; a
 * driver may bind it under another name in the same folder and rename it, so that it appears with its final mode.
 * @throws HarnessError when there is none: the kernel's table can miss one that is there while it changes.
 */
export function listenersOn(socket: string): number[] {
  const listening = readFileSync("/proc/net/unix", "utf8")
    .split("\n")
    .map((line) => line.trim().split(/\s+/))
    // Flags, field 4, of a listening socket: __SO_ACCEPTCON.
    .filter(([, , , flags, , , , path]) => path && dirname(path) === dirname(socket) && flags === "00010000")
    .map(([, , , , , , inode]) => `socket:[${inode}]`);
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
