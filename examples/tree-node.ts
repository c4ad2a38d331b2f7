/** The specification's `tree.TreeNode`, whose children may form cycles, in the steps of its C. */

import { Heap, type Address, type ObjectType } from 'obmalloc'

const heap = new Heap({ release: '3.13' })
const { gc } = heap
let deallocated = 0

const List = heap.defineType({ name: 'list', items: 'object', gc: true })
const TreeNode: ObjectType = heap.defineType({
  name: 'tree.TreeNode',
  fields: { children: 'object' }, // may create cycles
  gc: true, // Py_TPFLAGS_HAVE_GC
  traverse(self, visit) {
    const children = TreeNode.get(self, 'children') as Address | null
    if (children !== null) visit(children) // Py_VISIT(self->children)
  },
  clear(self) {
    TreeNode.set(self, 'children', null) // Py_CLEAR(self->children)
  },
  dealloc(self) {
    gc.untrack(self)
    TreeNode.set(self, 'children', null) // then tp_free gives the memory back
    deallocated++
  },
})

function newTreeNode(room: number): Address {
  const self = TreeNode.new() // PyObject_GC_New; a MemoryError is PyErr_NoMemory
  try {
    const children = List.alloc(room) // PyList_New
    TreeNode.set(self, 'children', children)
    heap.decref(children) // the node has it now
  } catch (error) {
    heap.decref(self)
    throw error
  }
  gc.track(self) // after initialisation
  return self
}

const [root, leaf] = [newTreeNode(1), newTreeNode(1)]
List.set(TreeNode.get(root, 'children') as Address, 0, leaf)
List.set(TreeNode.get(leaf, 'children') as Address, 0, root) // a cycle
heap.decref(root)
heap.decref(leaf)
console.log(gc.getObjects().length, deallocated) // 4 0
console.log(gc.collect(), deallocated) // 4 2
console.log(heap.allocatedBlocks()) // 0
heap.close()
