// SPDX-License-Identifier: Apache-2.0

import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import protobuf from "protobufjs";
import { CODECS, compiled, contract, declarations } from "./compile.ts";
import { CONVENTIONS, type Message } from "./contract.ts";
import { mustBeMessage } from "./strict.ts";
import { services } from "./v0.0/codecs.ts";

test("the codecs are those of the present .proto files (if not: bun run contract)", () => {
  expect(readFileSync(CODECS, "utf8")).toBe(compiled());
});

const MOST_DEPTH = 4;

/** A message in which every field says something. Of a oneof the last field does. */
function filled(type: protobuf.Type, depth = 0): Record<string, unknown> {
  const fields = type.fieldsArray.filter(
    (field) => depth < MOST_DEPTH || !(field.resolvedType instanceof protobuf.Type),
  );
  return Object.fromEntries(
    fields.map((field) => {
      const value = filledField(field, depth);
      if (field.map) return [field.name, { "a key": value }];
      return [field.name, field.repeated ? [value, value] : value];
    }),
  );
}

function filledField({ resolvedType, type, id }: protobuf.Field, depth: number): unknown {
  if (resolvedType instanceof protobuf.Type) return filled(resolvedType, depth + 1);
  if (resolvedType instanceof protobuf.Enum) return Object.keys(resolvedType.values).at(-1);
  if (type === "string") return `field ${id} \u{1f980}`;
  if (type === "bytes") return Buffer.from([id, 0, 255]);
  if (type === "bool") return true;
  return /64/.test(type) ? "9007199254740993" : id;
}

type Case = [name: string, type: protobuf.Type, codec: Message];

/** Every message that a method takes or returns, with its compiled codec. */
const cases = declarations(contract())
  .filter((item) => item instanceof protobuf.Service)
  .flatMap((service) =>
    service.methodsArray.flatMap((method): Case[] => {
      const { request, response } = services[service.fullName.slice(1)]![method.name]!;
      return [
        [method.requestType, method.resolvedRequestType!, request],
        [method.responseType, method.resolvedResponseType!, response],
      ];
    }),
  );

test.each(cases)("%s is written and read as protobufjs does it at run time", (_name, type, codec) => {
  for (const message of [filled(type), {}]) {
    const bytes = Buffer.from(codec.encode(codec.fromObject(message)).finish());
    expect(bytes).toEqual(Buffer.from(type.encode(type.fromObject(message)).finish()));
    mustBeMessage(bytes, codec.fields);
    const read = codec.toObject(codec.decode(bytes), CONVENTIONS);
    expect(read).toEqual(type.toObject(type.decode(bytes), CONVENTIONS));
  }
});
