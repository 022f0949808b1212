// SPDX-License-Identifier: Apache-2.0

/** What requests must look like: names, labels, environments, sizes. The rules and their messages are the real gateway's. */
import { openshell } from "../../proto/contract.ts";
import type { ExecSandboxRequest__Output } from "../../proto/v0.0/types/openshell/v1/ExecSandboxRequest.ts";
import type { SandboxSpec__Output } from "../../proto/v0.0/types/openshell/v1/SandboxSpec.ts";
import type { SandboxTemplate__Output } from "../../proto/v0.0/types/openshell/v1/SandboxTemplate.ts";
import { invalid } from "../status.ts";

type Strings = Record<string, string>;

// Limits; lengths and sizes in bytes

const MAX_ROUTABLE_NAME = 19; // three of them and two "--" must fit a DNS label
const MAX_PROVIDERS = 32;
const MAX_LOG_LEVEL = 32;
const MAX_MAP_ENTRIES = 128;
const MAX_MAP_KEY = 256;
const MAX_MAP_VALUE = 8192;
const MAX_ENVIRONMENT = 256 * 1024;
const MAX_TEMPLATE_STRING = 1024;
const MAX_TEMPLATE_STRUCT = 65_536;
const MAX_POLICY = 262_144;
const MAX_SELECTOR_PAIRS = 64;
const MAX_MAIN_ARGUMENTS = 256;
const MAX_MAIN_COMMAND = 256 * 1024;
const MAX_EXEC_ARGUMENTS = 1024;
const MAX_EXEC_ARGUMENT = 32 * 1024;
const MAX_EXEC_WORKDIR = 4096;

const bytes = (text: string) => Buffer.byteLength(text);

function atMost(size: number, limit: number, what: string): void {
  if (size > limit) throw invalid(`${what} (${size} > ${limit})`);
}

// Names

/** A workspace's name; unlike a sandbox's it may not be empty. */
export function validateWorkspaceName(name: string): void {
  if (name === "") throw invalid("workspace name is required");
  validateName(name, "workspace name");
}

/** Lower case letters, digits and single hyphens, at most 19 bytes. Empty passes: the gateway makes up a name. */
function validateName(name: string, field: string): void {
  atMost(bytes(name), MAX_ROUTABLE_NAME, `${field} exceeds maximum length`);
  if (!/^[a-z0-9-]*$/.test(name)) {
    throw invalid(`${field} must contain only lowercase alphanumeric characters or hyphens`);
  }
  if (/^-|-$/.test(name)) throw invalid(`${field} must not start or end with a hyphen`);
  if (name.includes("--")) throw invalid(`${field} must not contain consecutive hyphens`);
}

// Labels (Kubernetes' rules)

export function validateLabels(labels: Strings): void {
  for (const [key, value] of Object.entries(labels)) {
    validateLabelKey(key);
    validateLabelValue(value);
  }
}

export function validateAnnotations(annotations: Strings): void {
  validateMap(annotations, "annotations");
  Object.keys(annotations).forEach(validateLabelKey);
}

const ALPHANUMERIC = /^[\p{Alphabetic}\p{N}]$/u;
const NAME_CHARACTERS = /^[\p{Alphabetic}\p{N}_.-]*$/u;

function validateLabelKey(key: string): void {
  if (key === "") throw invalid("label key cannot be empty");
  if (bytes(key) > 253) throw invalid(`label key exceeds 253 characters: '${key}'`);
  const slash = key.indexOf("/");
  const name = slash < 0 ? key : key.slice(slash + 1);
  if (name === "") throw invalid(`label key name segment cannot be empty: '${key}'`);
  if (bytes(name) > 63) throw invalid(`label key name segment exceeds 63 characters: '${key}'`);
  if (!NAME_CHARACTERS.test(name)) {
    throw invalid(
      `label key name segment contains invalid characters (must be alphanumeric, '-', '_', or '.'): '${key}'`,
    );
  }
  const [first = "", last = ""] = [[...name][0], [...name].at(-1)];
  if (!ALPHANUMERIC.test(first))
    throw invalid(`label key name segment must start with alphanumeric character: '${key}'`);
  if (!ALPHANUMERIC.test(last))
    throw invalid(`label key name segment must end with alphanumeric character: '${key}'`);
  if (slash >= 0) validateLabelPrefix(key.slice(0, slash), key);
}

function validateLabelPrefix(prefix: string, key: string): void {
  if (prefix === "") throw invalid(`label key prefix cannot be empty when '/' is present: '${key}'`);
  if (!/^[a-z0-9.-]*$/.test(prefix)) {
    throw invalid(`label key prefix must be a DNS subdomain (lowercase alphanumeric, '-', '.'): '${key}'`);
  }
  if (/^[-.]|[-.]$/.test(prefix))
    throw invalid(`label key prefix cannot start or end with '-' or '.': '${key}'`);
  if (prefix.includes("..")) throw invalid(`label key prefix cannot contain consecutive dots: '${key}'`);
}

function validateLabelValue(value: string): void {
  if (value === "") return;
  if (bytes(value) > 63) throw invalid(`label value exceeds 63 characters: '${value}'`);
  if (!NAME_CHARACTERS.test(value)) {
    throw invalid(
      `label value contains invalid characters (must be alphanumeric, '-', '_', or '.'): '${value}'`,
    );
  }
  const [first = "", last = ""] = [[...value][0], [...value].at(-1)];
  if (!ALPHANUMERIC.test(first))
    throw invalid(`label value must start with alphanumeric character: '${value}'`);
  if (!ALPHANUMERIC.test(last)) throw invalid(`label value must end with alphanumeric character: '${value}'`);
}

/** "key=value,key=value"; empty is no condition, and so is an empty pair. */
export function validateLabelSelector(selector: string): void {
  const pairs = selector
    .split(",")
    .map((pair) => pair.trim())
    .filter(Boolean);
  if (pairs.length > MAX_SELECTOR_PAIRS)
    throw invalid(`label selector exceeds ${MAX_SELECTOR_PAIRS} pair limit`);
  for (const pair of pairs) {
    const equals = pair.indexOf("=");
    if (equals < 0) throw invalid(`invalid label selector: expected 'key=value', got '${pair}'`);
    const key = pair.slice(0, equals).trim();
    if (key === "") throw invalid(`invalid label selector: key cannot be empty in '${pair}'`);
    validateLabelKey(key);
    validateLabelValue(pair.slice(equals + 1).trim());
  }
}

// Sandboxes

export function validateSpec(name: string, spec: SandboxSpec__Output): void {
  validateName(name, "name");
  atMost(spec.providers.length, MAX_PROVIDERS, "providers list exceeds maximum");
  atMost(bytes(spec.log_level), MAX_LOG_LEVEL, "log_level exceeds maximum length");
  validateMap(spec.environment, "spec.environment");
  validateEnvironment(spec.environment, "spec.environment");
  if (spec.template) {
    validateTemplate(spec.template);
    validateEnvironment(spec.template.environment, "spec.template.environment");
  }
  if (spec.resource_requirements?.gpu?.count === 0) throw invalid("gpu count must be greater than 0");
  if (spec.command.length) validateMainCommand(spec.command);
  if (spec.policy)
    atMost(encodedSize({ policy: spec.policy }, 2), MAX_POLICY, "policy serialized size exceeds maximum");
}

function validateTemplate(template: SandboxTemplate__Output): void {
  for (const field of ["image", "runtime_class_name", "agent_socket"] as const) {
    atMost(bytes(template[field]), MAX_TEMPLATE_STRING, `template.${field} exceeds maximum length`);
  }
  for (const field of ["labels", "annotations", "environment"] as const) {
    validateMap(template[field], `template.${field}`);
  }
  for (const field of ["resources", "driver_config"] as const) {
    if (!template[field]) continue;
    const size = encodedSize({ template: { [field]: template[field] } }, 3);
    atMost(size, MAX_TEMPLATE_STRUCT, `template.${field} serialized size exceeds maximum`);
  }
}

function validateMap(map: Strings, field: string): void {
  const entries = Object.entries(map);
  atMost(entries.length, MAX_MAP_ENTRIES, `${field} exceeds maximum entries`);
  for (const [key, value] of entries) {
    atMost(bytes(key), MAX_MAP_KEY, `${field} key exceeds maximum length`);
    atMost(bytes(value), MAX_MAP_VALUE, `${field} value exceeds maximum length`);
  }
}

function validateEnvironment(environment: Strings, field: string): void {
  const total = Object.entries(environment).reduce((sum, [key, value]) => sum + bytes(key) + bytes(value), 0);
  if (total > MAX_ENVIRONMENT) {
    throw invalid(`${field} total size exceeds ${MAX_ENVIRONMENT} byte limit (${total} bytes)`);
  }
  validateVariables(environment, field, []);
}

function validateVariables(environment: Strings, field: string, allowed: string[]): void {
  for (const [key, value] of Object.entries(environment)) {
    if (!VARIABLE.test(key)) throw invalid(`${field} keys must match ^[A-Za-z_][A-Za-z0-9_]*$; got '${key}'`);
    if (key.startsWith("OPENSHELL_") && !allowed.includes(key)) {
      throw invalid(`${field} keys starting with OPENSHELL_ are reserved; got '${key}'`);
    }
    rejectNull(value, `${field} value for '${key}'`);
    rejectNewline(value, `${field} value for '${key}'`);
  }
}

const VARIABLE = /^[A-Za-z_][A-Za-z0-9_]*$/;

function validateMainCommand(command: string[]): void {
  if (command.length > MAX_MAIN_ARGUMENTS)
    throw invalid(`spec.command exceeds ${MAX_MAIN_ARGUMENTS} argument limit`);
  if (command[0] === "") throw invalid("spec.command[0] must not be empty");
  if (command.reduce((sum, argument) => sum + bytes(argument), 0) > MAX_MAIN_COMMAND) {
    throw invalid(`spec.command total size exceeds ${MAX_MAIN_COMMAND} byte limit`);
  }
  for (const [index, argument] of command.entries()) {
    if (bytes(argument) > MAX_EXEC_ARGUMENT) {
      throw invalid(`spec.command[${index}] exceeds ${MAX_EXEC_ARGUMENT} byte limit`);
    }
    rejectNull(argument, `spec.command[${index}]`);
  }
}

function rejectNull(value: string, what: string): void {
  if (value.includes("\0")) throw invalid(`${what} contains null bytes`);
}

function rejectNewline(value: string, what: string): void {
  if (/[\r\n]/.test(value)) throw invalid(`${what} contains newline or carriage return characters`);
}

/** The encoded size of the message that lies `depth` length-prefixed fields deep in a create request with this spec. */
function encodedSize(spec: object, depth: number): number {
  const encoded = openshell().OpenShell.service.CreateSandbox.requestSerialize({ spec } as never);
  let offset = 0;
  let length = 0;
  for (let level = 0; level < depth; level++) {
    offset++; // the tag: every field on the way has a number below 16
    length = 0;
    for (let shift = 0, more = true; more; shift += 7, offset++) {
      length |= (encoded[offset]! & 0x7f) << shift;
      more = encoded[offset]! > 0x7f;
    }
  }
  return length;
}

// Exec

export function validateExec(request: ExecSandboxRequest__Output): void {
  if (request.sandbox_id === "") throw invalid("sandbox_id is required");
  if (request.command.length === 0) throw invalid("command is required");
  if (!Object.keys(request.environment).every((key) => VARIABLE.test(key))) {
    throw invalid("environment keys must match ^[A-Za-z_][A-Za-z0-9_]*$");
  }
  if (request.command.length > MAX_EXEC_ARGUMENTS) {
    throw invalid(`command array exceeds ${MAX_EXEC_ARGUMENTS} argument limit`);
  }
  for (const [index, argument] of request.command.entries()) {
    if (bytes(argument) > MAX_EXEC_ARGUMENT) {
      throw invalid(`command argument ${index} exceeds ${MAX_EXEC_ARGUMENT} byte limit`);
    }
    rejectNull(argument, `command argument ${index}`);
  }
  for (const [key, value] of Object.entries(request.environment)) {
    const what = `environment value for '${key}'`;
    if (bytes(value) > MAX_EXEC_ARGUMENT) throw invalid(`${what} exceeds ${MAX_EXEC_ARGUMENT} byte limit`);
    rejectNull(value, what);
    rejectNewline(value, what);
  }
  // The Python SDK sends a pickled function under this name.
  validateVariables(request.environment, "environment", ["OPENSHELL_PYFUNC_B64"]);
  if (bytes(request.workdir) > MAX_EXEC_WORKDIR)
    throw invalid(`workdir exceeds ${MAX_EXEC_WORKDIR} byte limit`);
  rejectNull(request.workdir, "workdir");
  rejectNewline(request.workdir, "workdir");
}
