// SPDX-License-Identifier: Apache-2.0

/** CPU, memory and GPUs: Kubernetes' quantities as the kernel takes them, and names of CDI devices. */
import { readdirSync } from "node:fs";
import type { DriverResourceRequirements__Output as Resources } from "../../proto/v0.0/types/openshell/compute/v1/DriverResourceRequirements.ts";
import type { DriverSandbox__Output as Sandbox } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import { invalid, precondition } from "../status.ts";

export const CPU_PERIOD = 100_000;

/** Cores ("2", "0.5") or thousandths ("500m") as microseconds of CPU time in a period; null if it is neither. */
export function cpuQuota(quantity: string): number | null {
  const [, number, milli] = /^(\d+(?:\.\d+)?)(m?)$/.exec(quantity) ?? [];
  if (!number || (milli && number.includes("."))) return null;
  const quota = Math.floor((Number(number) * CPU_PERIOD) / (milli ? 1000 : 1));
  return quota > 0 ? quota : null;
}

/** Bytes of a quantity ("256Mi", "1G", "1048576"); null if it is none. */
export function memoryBytes(quantity: string): number | null {
  const [, number, prefix = "", binary] = /^(\d+(?:\.\d+)?)(?:([kKMGTPE])(i?))?$/.exec(quantity) ?? [];
  // "ki" is none: the small k is of the decimal units only.
  if (!number || (prefix === "k" && binary)) return null;
  const power = prefix ? " KMGTPE".indexOf(prefix.toUpperCase()) : 0;
  const bytes = Math.floor(Number(number) * (binary ? 1024 : 1000) ** power);
  return bytes > 0 && bytes < 2 ** 63 ? bytes : null;
}

/**
 * Limits and requests that cannot be read are an error: a sandbox with other limits than asked for is a trap.
 * @throws Status INVALID_ARGUMENT
 */
export function checkQuantities(resources: Resources | null): void {
  const check = (name: keyof Resources, read: typeof cpuQuota, expected: string): void => {
    const quantity = resources?.[name];
    if (quantity && read(quantity) === null)
      throw invalid(`invalid ${name} '${quantity}': expected ${expected}`);
  };
  for (const name of ["cpu_limit", "cpu_request"] as const)
    check(name, cpuQuota, "cores like '0.5' or '500m'");
  for (const name of ["memory_limit", "memory_request"] as const) {
    check(name, memoryBytes, "bytes like '1048576' or '256Mi'");
  }
}

/**
 * The devices of a sandbox, from driver_config or else the first ones that the host has; null if it asks for none.
 * @throws Status INVALID_ARGUMENT for a request that contradicts itself, FAILED_PRECONDITION for too few devices
 */
export function gpuDevices(sandbox: Sandbox, named: string[] | null): string[] | null {
  const gpu = sandbox.spec?.resource_requirements?.gpu ?? null;
  const count = gpu ? (gpu.count ?? 1) : 0;
  if (gpu && count === 0) throw invalid("gpu count must be greater than 0");
  if (named) {
    const field = "driver_config.cdi_devices";
    const twice = named.find((device, index) => named.indexOf(device) !== index);
    if (twice !== undefined) throw invalid(`${field} contains duplicate device ID '${twice}'`);
    if (!gpu) throw invalid(`${field} requires a gpu resource requirement`);
    if (count !== named.length) {
      throw invalid(`gpu count (${count}) must match ${field} length (${named.length})`);
    }
    return named;
  }
  if (!gpu) return null;
  const devices = readdirSync("/dev")
    .flatMap((name) => /^nvidia(\d+)$/.exec(name)?.[1] ?? [])
    .toSorted((a, b) => Number(a) - Number(b))
    .map((index) => `nvidia.com/gpu=${index}`);
  if (devices.length === 0) throw precondition("no NVIDIA CDI GPU devices were discovered");
  if (count > devices.length) {
    const [verb, noun] = devices.length === 1 ? ["is", "device"] : ["are", "devices"];
    throw precondition(
      `GPU sandbox requested ${count} GPUs, but only ${devices.length} selectable NVIDIA CDI GPU ${noun} ${verb} available`,
    );
  }
  return devices.slice(0, count);
}
