/** Makes elements. Text is set as text, so that nothing in a recording is read as HTML. */

import { bytes, count } from './words.ts'

export type Child = Node | string | null | undefined | false

type Attributes = Readonly<Record<string, string | number | boolean | ((event: never) => void) | undefined>>

/** An element with attributes (`on…` functions listen) and children. */
export function el<Name extends keyof HTMLElementTagNameMap>(
  name: Name,
  attributes: Attributes = {},
  ...children: readonly Child[]
): HTMLElementTagNameMap[Name] {
  const element = document.createElement(name)
  for (const [key, value] of Object.entries(attributes))
    if (typeof value === 'function') element.addEventListener(key.slice(2), value as EventListener)
    else if (value !== undefined && value !== false) element.setAttribute(key, value === true ? '' : String(value))
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false))
  return element
}

/** An exact number, shown for people. */
export const exact = (value: number, text: string): HTMLElement => el('data', { value }, text)
export const size = (value: number): HTMLElement => el('data', { value, title: `${count(value)} bytes` }, bytes(value))
export const number = (value: number): HTMLElement => exact(value, count(value))

/** Buttons; one of them is chosen. */
export function choice<Value extends string>(
  label: string,
  values: readonly (readonly [Value, string, string])[],
  chosen: (value: Value) => void,
): { element: HTMLElement; show: (value: string) => void } {
  const buttons = values.map(([value, text, title]) =>
    el('button', { type: 'button', title, 'data-value': value, onclick: () => chosen(value) }, text),
  )
  return {
    element: el('div', { class: 'choice', role: 'group', 'aria-label': label }, ...buttons),
    show: (value) => {
      for (const button of buttons) button.setAttribute('aria-pressed', String(button.dataset['value'] === value))
    },
  }
}

export function toggle(
  text: string,
  title: string,
  changed: (on: boolean) => void,
): { element: HTMLElement; show: (on: boolean) => void } {
  const box = el('input', { type: 'checkbox', onchange: () => changed(box.checked) })
  return { element: el('label', { class: 'toggle', title }, box, text), show: (on) => (box.checked = on) }
}

export function search(
  label: string,
  changed: (text: string) => void,
): { element: HTMLElement; input: HTMLInputElement; show: (text: string) => void } {
  const input = el('input', {
    type: 'search',
    placeholder: label,
    'aria-label': label,
    spellcheck: 'false',
    oninput: () => changed(input.value),
  })
  return {
    element: input,
    input,
    show: (text) => {
      if (input.value !== text) input.value = text
    },
  }
}
