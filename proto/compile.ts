// SPDX-License-Identifier: Apache-2.0

/**
 * Compiles the contract, as a part of `bun install`: reads the .proto files and writes `v0.0/codecs.ts`, the services
 * with the functions that encode and decode their messages.
 *
 * protobufjs can make the same functions at run time, in each process anew. But each sandbox is a process here, and that
 * was half of what a fake gateway computed. So its own generators write them down, once.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import protobuf from "protobufjs";

const FOLDER = join(import.meta.dir, "v0.0");
/** The file that is written. */
export const CODECS = join(FOLDER, "codecs.ts");
const FILES = ["compute_driver", "datamodel", "sandbox", "openshell"];

/** The .proto files as protobufjs reads them, with what they import of Google's. */
export function contract(): protobuf.Root {
  const root = protobuf.Root.fromJSON(protobuf.common.get("google/protobuf/struct.proto")!);
  for (const file of FILES) {
    protobuf.parse(readFileSync(join(FOLDER, `${file}.proto`), "utf8"), root, { keepCase: true });
  }
  root.resolveAll();
  return root;
}

/** All that a namespace declares, at any depth. */
export const declarations = (namespace: protobuf.NamespaceBase): protobuf.ReflectionObject[] =>
  namespace.nestedArray.flatMap((item) =>
    item instanceof protobuf.Namespace ? [item, ...declarations(item)] : [item],
  );

/** What a declaration is called in the code. No name of a package or a message has a `$`. */
const nameOf = (item: protobuf.ReflectionObject) => item.fullName.slice(1).replaceAll(".", "$");

/** Both ways between an enum's names and numbers, as protobufjs has them: the numbers' in the prototype. */
function enumCode(item: protobuf.Enum): string {
  const values = `{ __proto__: ${JSON.stringify(item.valuesById)}, ...${JSON.stringify(item.values)} }`;
  return `const ${nameOf(item)} = { values: ${values} };`;
}

/** A message's class. Its prototype has what the decoder takes for an empty list or map. */
function classCode(type: protobuf.Type): string {
  const empty = type.fieldsArray.flatMap((field) => {
    if (field.repeated) return [`${field.name}: util.emptyArray`];
    return field.map ? [`${field.name}: util.emptyObject`] : [];
  });
  return [
    `const ${nameOf(type)} = { ctor: class {} };`,
    `Object.assign(${nameOf(type)}.ctor.prototype, { ${empty.join(", ")} });`,
  ].join("\n");
}

/** A message's functions. They look the types of its fields up in `types`, by the number of the field. */
function functionsCode(type: protobuf.Type): string {
  const types = type.fieldsArray.map((field) => (field.resolvedType ? nameOf(field.resolvedType) : "null"));
  const { encoder, decoder, converter } = protobuf;
  return [
    `{ const types = [${types.join(", ")}];`,
    `Object.assign(${nameOf(type)}, {`,
    `encode: ${encoder(type)},`,
    `decode: ${decoder(type)},`,
    `fromObject: ${converter.fromObject(type)},`,
    `toObject: ${converter.toObject(type)},`,
    `fields: ${fieldsCode(type)},`,
    `}); }`,
  ].join("\n");
}

/** A message's fields as strict.ts wants them. */
function fieldsCode(type: protobuf.Type): string {
  const byNumber: string[] = [];
  for (const [index, field] of type.fieldsArray.entries()) {
    const value = valueCode(field.type, field.resolvedType, index);
    const isPackable = field.repeated && value.startsWith("wire: ") && !value.startsWith("wire: 2");
    const entry =
      field instanceof protobuf.MapField &&
      `wire: 2, of: { fields: [, { ${valueCode(field.keyType, null, index)} }, { ${value} }] }`;
    const name = JSON.stringify(`${type.name}.${rustName(field)}`);
    byNumber[field.id] = `{ name: ${name}, ${entry || value}${isPackable ? ", isPackable: true" : ""} }`;
  }
  return `[${Array.from(byNumber, (code) => code ?? "").join(", ")}]`;
}

/** What prost calls a field: of a oneof there is one for all. */
function rustName({ name, partOf }: protobuf.Field): string {
  if (partOf && !partOf.isProto3Optional) return partOf.name;
  return name === "type" ? "r#type" : name;
}

function valueCode(type: string, resolved: protobuf.ReflectionObject | null, index: number): string {
  if (resolved instanceof protobuf.Type) return `wire: 2, of: types[${index}]`;
  const wire = resolved ? 0 : protobuf.types.basic[type as keyof typeof protobuf.types.basic];
  return type === "string" ? "wire: 2, isText: true" : `wire: ${wire}`;
}

function serviceCode(service: protobuf.Service): string {
  const methods = service.methodsArray.map(
    ({ name, requestStream, resolvedRequestType, responseStream, resolvedResponseType }) =>
      `  ${name}: { request: ${nameOf(resolvedRequestType!)}, requestStream: ${Boolean(requestStream)}, ` +
      `response: ${nameOf(resolvedResponseType!)}, responseStream: ${Boolean(responseStream)} },`,
  );
  return [`${JSON.stringify(service.fullName.slice(1))}: {`, ...methods, "},"].join("\n");
}

/** What codecs.ts is to hold. */
export function compiled(): string {
  const declared = declarations(contract());
  const types = declared.filter((item) => item instanceof protobuf.Type);
  return [
    "// @ts-nocheck: written by compile.ts, with protobufjs's generators.",
    `import minimal from "protobufjs/minimal.js";`,
    `import type { Method } from "../contract.ts";`,
    "const { Reader, Writer, util } = minimal;",
    ...declared.filter((item) => item instanceof protobuf.Enum).map(enumCode),
    ...types.map(classCode),
    ...types.map(functionsCode),
    "export const services: Record<string, Record<string, Method>> = {",
    ...declared.filter((item) => item instanceof protobuf.Service).map(serviceCode),
    "};\n",
  ].join("\n");
}

if (import.meta.main) writeFileSync(CODECS, compiled());
