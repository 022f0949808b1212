// SPDX-License-Identifier: Apache-2.0

/**
 * Which things on an engine belong to a sandbox, by name. Names, ids and labels come from gateways, drivers and engines
 * under test, and an engine is shared with other people: a match that is too wide removes their data.
 */

/** Gateways give sandboxes UUIDs (openshell-server 0.0.112, grpc/sandbox.rs:300), and so do our own checks. */
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** Whether an id is so unlikely to occur by chance that a name with it can only belong to that sandbox. */
export const isSandboxId = (id: string): boolean => UUID.test(id);

/** Whether a name holds a sandbox's id as a whole: not as a part of a longer word, and never one that is no UUID. */
export const holdsId = (name: string, id: string): boolean =>
  isSandboxId(id) && new RegExp(`(?<![0-9A-Za-z])${id}(?![0-9A-Za-z])`).test(name);
