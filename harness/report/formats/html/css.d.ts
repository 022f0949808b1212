// SPDX-License-Identifier: Apache-2.0

/** page.css imported `with { type: "text" }`. */
declare module "*.css" {
  const text: string;
  export default text;
}
