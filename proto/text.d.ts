// SPDX-License-Identifier: Apache-2.0

/** A .proto file imported `with { type: "text" }`. */
declare module "*.proto" {
  const text: string;
  export default text;
}
