// SPDX-License-Identifier: Apache-2.0

/** A public sandbox as a driver gets it: only what a driver needs, and only its own block of driver_config. */
import type { DriverResourceRequirements } from "../../proto/v0.0/types/openshell/compute/v1/DriverResourceRequirements.ts";
import type { DriverSandbox } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import type { DriverSandboxTemplate } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandboxTemplate.ts";
import type { Struct__Output as Struct } from "../../proto/v0.0/types/google/protobuf/Struct.ts";
import type { Value__Output as Value } from "../../proto/v0.0/types/google/protobuf/Value.ts";
import type { Sandbox__Output } from "../../proto/v0.0/types/openshell/v1/Sandbox.ts";
import type { SandboxTemplate__Output } from "../../proto/v0.0/types/openshell/v1/SandboxTemplate.ts";
import { invalid } from "../status.ts";
import { phaseOf } from "./phases.ts";

/**
 * The sandbox without its token, labels, annotations, policy and providers, which no driver sees here.
 * @param driver the configured name, which is the key in driver_config
 * @throws Status when that block is not an object
 */
export function driverSandbox(sandbox: Sandbox__Output, driver: string): DriverSandbox {
  const { id, name, workspace } = sandbox.metadata!;
  const spec = sandbox.spec!;
  return {
    id,
    name,
    workspace,
    spec: {
      log_level: spec.log_level,
      environment: spec.environment,
      template: spec.template && driverTemplate(spec.template, driver),
      resource_requirements: spec.resource_requirements,
      command: spec.command,
      tty: spec.tty,
    },
    // A placeholder that drivers ignore.
    status: sandbox.status && {
      sandbox_name: sandbox.status.sandbox_name,
      instance_id: sandbox.status.agent_pod,
      agent_fd: sandbox.status.agent_fd,
      sandbox_fd: sandbox.status.sandbox_fd,
      conditions: sandbox.status.conditions,
      deleting: phaseOf(sandbox) === "Deleting",
    },
  };
}

function driverTemplate(template: SandboxTemplate__Output, driver: string): DriverSandboxTemplate {
  return {
    image: template.image,
    agent_socket_path: template.agent_socket,
    labels: template.labels,
    environment: template.environment,
    resources: quantities(template.resources),
    platform_config: platformConfig(template),
    driver_config: driverConfig(template.driver_config, driver),
  };
}

function driverConfig(config: Struct | null, driver: string): Struct | null {
  const block = config?.fields[driver];
  if (!block) return null;
  if (!block.structValue) throw invalid(`template.driver_config.${driver} must be an object`);
  return block.structValue;
}

/** CPU and memory, where given as strings. */
function quantities(resources: Struct | null): DriverResourceRequirements | null {
  const quantity = (section: string, name: string) =>
    resources?.fields[section]?.structValue?.fields[name]?.stringValue ?? "";
  const found = {
    cpu_request: quantity("requests", "cpu"),
    cpu_limit: quantity("limits", "cpu"),
    memory_request: quantity("requests", "memory"),
    memory_limit: quantity("limits", "memory"),
  };
  return Object.values(found).some(Boolean) ? found : null;
}

/** What only some platforms know: runtime class, annotations, user namespaces, and resources other than the above. */
function platformConfig(template: SandboxTemplate__Output): Struct | null {
  const fields: Record<string, Value> = {};
  if (template.runtime_class_name) fields.runtime_class_name = text(template.runtime_class_name);
  if (Object.keys(template.annotations).length) {
    fields.annotations = struct(
      Object.fromEntries(Object.entries(template.annotations).map(([key, value]) => [key, text(value)])),
    );
  }
  if (template.user_namespaces !== undefined) {
    fields.host_users = { boolValue: !template.user_namespaces, kind: "boolValue" };
  }
  const rest = otherResources(template.resources);
  if (Object.keys(rest).length) fields.resources_raw = struct(rest);
  return Object.keys(fields).length ? { fields } : null;
}

function otherResources(resources: Struct | null): Record<string, Value> {
  const rest: Record<string, Value> = {};
  for (const [section, value] of Object.entries(resources?.fields ?? {})) {
    const inner = section === "limits" || section === "requests" ? value.structValue : undefined;
    if (!inner) {
      rest[section] = value;
      continue;
    }
    const others = Object.entries(inner.fields).filter(
      ([name, quantity]) => !((name === "cpu" || name === "memory") && quantity.stringValue !== undefined),
    );
    if (others.length) rest[section] = struct(Object.fromEntries(others));
  }
  return rest;
}

const text = (stringValue: string): Value => ({ stringValue, kind: "stringValue" });
const struct = (fields: Record<string, Value>): Value => ({ structValue: { fields }, kind: "structValue" });
