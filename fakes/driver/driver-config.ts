// SPDX-License-Identifier: Apache-2.0

/** `template.driver_config`: its schema, and what the operator and the paths allow of the mounts in it. */
import type { Struct__Output as Struct } from "../../proto/v0.0/types/google/protobuf/Struct.ts";
import type { Value__Output as Value } from "../../proto/v0.0/types/google/protobuf/Value.ts";
import { invalid, precondition } from "../status.ts";
import { checkName } from "./names.ts";

export interface MountRequest {
  type: "bind" | "volume" | "tmpfs" | "image";
  source: string;
  target: string;
  readOnly: boolean;
  selinuxLabel: "shared" | "private" | null;
  options: string[];
  sizeBytes: number | null;
  mode: number | null;
}

export interface DriverConfig {
  cdiDevices: string[] | null;
  mounts: MountRequest[];
}

// Schema

const MOUNT_FIELDS: Record<MountRequest["type"], string[]> = {
  bind: ["source", "target", "read_only", "selinux_label"],
  volume: ["source", "target", "read_only", "subpath"],
  tmpfs: ["target", "options", "size_bytes", "mode"],
  image: ["source", "target", "read_only", "subpath"],
};

const bad = (problem: string): never => {
  throw invalid(`invalid podman driver_config: ${problem}`);
};

/** @throws Status INVALID_ARGUMENT for a field that the schema does not have or a value of another type */
export function readDriverConfig(struct: Struct | null): DriverConfig {
  const config = struct ? fromStruct(struct) : {};
  for (const key of Object.keys(config)) {
    if (key !== "cdi_devices" && key !== "mounts") {
      bad(`unknown field \`${key}\`, expected \`cdi_devices\` or \`mounts\``);
    }
  }
  const { cdi_devices: devices, mounts = [] } = config;
  return {
    cdiDevices: devices === undefined ? null : readDevices(list(devices, "cdi_devices")),
    mounts: list(mounts, "mounts").map(readMount),
  };
}

function readDevices(devices: Json[]): string[] {
  if (devices.length === 0) bad("must be a non-empty list of strings");
  return devices.map((device, index) => {
    const found = text(device, "cdi_devices");
    return found.trim() ? found : bad(`[${index}] must be a non-empty string`);
  });
}

function readMount(value: Json): MountRequest {
  if (value === null || typeof value !== "object" || Array.isArray(value))
    return bad("a mount must be an object");
  const type = text(value.type, "type") as MountRequest["type"];
  const fields =
    MOUNT_FIELDS[type] ??
    bad(`unknown variant \`${type}\`, expected one of \`bind\`, \`volume\`, \`tmpfs\`, \`image\``);
  for (const key of Object.keys(value)) {
    if (key !== "type" && !fields.includes(key)) {
      bad(`unknown field \`${key}\`, expected one of ${fields.map((field) => `\`${field}\``).join(", ")}`);
    }
  }
  const number = (name: string): number | null => {
    const found = value[name] ?? null;
    return found === null || typeof found === "number" ? found : bad(`${name} must be a number`);
  };
  const { selinux_label: label = null, read_only: readOnly = true, subpath = null } = value;
  if (label !== null && label !== "shared" && label !== "private") {
    return bad("selinux_label must be `shared` or `private`");
  }
  if (typeof readOnly !== "boolean") return bad("read_only must be a boolean");
  if (subpath !== null) refuseSubpath(text(subpath, "subpath"), type);
  return {
    type,
    source: type === "tmpfs" ? "tmpfs" : text(value.source, "source"),
    target: text(value.target, "target"),
    readOnly,
    selinuxLabel: label,
    options: list(value.options ?? [], "options").map((option) => text(option, "options")),
    sizeBytes: number("size_bytes"),
    mode: number("mode"),
  };
}

function refuseSubpath(subpath: string, type: string): never {
  if (subpath === "") unmet("mount subpath must not be empty");
  if (subpath.startsWith("/") || subpath.split("/").includes("..")) {
    unmet("mount subpath must be relative and must not contain '..'");
  }
  return unmet(`podman ${type} mounts do not support subpath`);
}

const list = (value: Json, name: string): Json[] =>
  Array.isArray(value) ? value : bad(`${name} must be a list`);

function text(value: Json | undefined, name: string): string {
  if (typeof value === "string") return value;
  return bad(value === undefined ? `missing field \`${name}\`` : `${name} must be a string`);
}

// Policy

/** Paths that belong to OpenShell inside a sandbox; no mount may cover them or lie in them. */
const RESERVED = [
  "/opt/openshell",
  "/etc/openshell",
  "/etc/openshell-tls",
  "/run/openshell",
  "/run/openshell-sidecar",
  "/run/netns",
  "/var/run/netns",
];

const unmet = (message: string): never => {
  throw precondition(message);
};

/** What the operator and the paths allow. @throws Status FAILED_PRECONDITION */
export function checkMounts(mounts: MountRequest[], enableBindMounts: boolean): void {
  const targets = new Set<string>();
  for (const mount of mounts) {
    checkSource(mount, enableBindMounts);
    checkTmpfs(mount);
    const target = checkTarget(mount.target);
    if (targets.has(target)) unmet(`duplicate podman driver_config mount target '${target}'`);
    targets.add(target);
  }
}

function checkSource({ type, source }: MountRequest, enableBindMounts: boolean): void {
  if (type === "bind" && !enableBindMounts) {
    unmet("podman bind mounts require enable_bind_mounts = true in [openshell.drivers.podman]");
  }
  if (source === "") unmet(`${type} source must not be empty`);
  if (source !== source.trim()) unmet(`${type} source must not contain surrounding whitespace`);
  if (source.includes("\0")) unmet(`${type} source must not contain NUL bytes`);
  if (type === "bind" && !source.startsWith("/")) unmet("bind source must be an absolute host path");
  if (type === "volume") checkName(source, unmet);
}

function checkTmpfs({ options, sizeBytes, mode }: MountRequest): void {
  if (options.some((option) => option.trim() === "")) unmet("tmpfs options must not contain empty values");
  if (sizeBytes !== null && !Number.isSafeInteger(sizeBytes)) unmet("tmpfs size_bytes must be an integer");
  if (sizeBytes !== null && sizeBytes <= 0) unmet("tmpfs size_bytes must be positive");
  if (mode !== null && !Number.isSafeInteger(mode)) unmet("tmpfs mode must be an integer");
  if (mode !== null && mode < 0) unmet("tmpfs mode must be zero or greater");
}

/** The target without its trailing slash. */
function checkTarget(target: string): string {
  if (target === "") unmet("mount target must not be empty");
  if (target !== target.trim()) unmet("mount target must not contain surrounding whitespace");
  if (/\p{Cc}/u.test(target)) unmet("mount target must not contain control characters");
  if (!target.startsWith("/")) unmet("mount target must be an absolute container path");
  const path = withoutSlash(target);
  if (path === "") unmet("mount target must not be the container root");
  const parts = path.slice(1).split("/");
  if (parts.some((part) => ["", ".", ".."].includes(part))) {
    unmet("mount target must be normalized without empty, '.', or '..' path segments");
  }
  for (const reserved of RESERVED) {
    if (within(path, reserved) || within(reserved, path)) {
      unmet(`mount target '${target}' conflicts with reserved OpenShell path '${reserved}'`);
    }
  }
  if (within("/sandbox", path)) unmet(`mount target '${target}' is reserved for the OpenShell workspace`);
  return path;
}

export const withoutSlash = (path: string): string => path.replace(/\/+$/, "");

const within = (path: string, parent: string): boolean => path === parent || path.startsWith(`${parent}/`);

// A message of the type google.protobuf.Struct as JSON

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

const fromStruct = ({ fields }: Struct): { [key: string]: Json } =>
  Object.fromEntries(Object.entries(fields ?? {}).map(([key, value]) => [key, fromValue(value)]));

function fromValue({ structValue, listValue, stringValue, numberValue, boolValue }: Value): Json {
  if (structValue) return fromStruct(structValue);
  if (listValue) return (listValue.values ?? []).map(fromValue);
  return stringValue ?? numberValue ?? boolValue ?? null;
}
