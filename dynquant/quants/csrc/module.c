/* The Python interface of the core: CPython's limited API, buffers in, buffers out.
 *
 * codec.py, stored.py and feedback.py in dynquant/quants are the only callers and check types and
 * shapes. The checks here only make sure that a wrong call reads and writes no memory outside its
 * buffers.
 */
#include "face.h"

static const int stored_size[N_STORED] = {4, 2, 2};

static const struct quant_type *type_at(int isa, int type)
{
    if (!codec_at(isa))
        return NULL;
    if (type < 0 || type >= codecs[isa]->n_types) {
        PyErr_SetString(PyExc_ValueError, "no such quant type");
        return NULL;
    }
    return &codecs[isa]->types[type];
}

PyDoc_STRVAR(encode_doc, "encode(isa, type, stored, rows, n_per_row, importance, mean, effort,"
                         " by_magnitude, gain, blocks) -> int\n\n"
                         "Fill blocks; return -1 or the first row that is not finite.");

static PyObject *encode(PyObject *self, PyObject *args)
{
    int isa, type_index, stored, effort, by_magnitude;
    float gain;
    long long n_per_row;
    Py_buffer rows, blocks, importance = {0}, mean = {0};
    (void)self;
    if (!PyArg_ParseTuple(args, "iiiy*Lz*z*ipfw*", &isa, &type_index, &stored, &rows, &n_per_row,
                          &importance, &mean, &effort, &by_magnitude, &gain, &blocks))
        return NULL;

    PyObject *result = NULL;
    const struct quant_type *type = type_at(isa, type_index);
    if (!type)
        goto done;
    int64_t size = stored >= 0 && stored < N_STORED ? stored_size[stored] : 0;
    int fits = size && effort >= 0 && effort < N_EFFORTS && n_per_row > 0 &&
               n_per_row <= INT64_MAX / 8 && n_per_row % type->block_size == 0 &&
               rows.len % (n_per_row * size) == 0 &&
               (!importance.buf || holds(importance.len, n_per_row, sizeof(float))) &&
               (!mean.buf || (holds(mean.len, n_per_row, sizeof(float)) && importance.buf &&
                              type->block_size > 1 && !by_magnitude));
    if (!fits) {
        PyErr_SetString(PyExc_ValueError,
                        "rows, importance, mean, n_per_row, effort do not fit together");
        goto done;
    }
    int64_t n_rows = rows.len / (n_per_row * size);
    if (!holds(blocks.len, n_rows * (n_per_row / type->block_size), type->type_size)) {
        PyErr_SetString(PyExc_ValueError, "blocks has not the size that rows needs");
        goto done;
    }
    struct search search = {(enum effort)effort, by_magnitude, gain};
    int64_t bad_row;
    Py_BEGIN_ALLOW_THREADS
    bad_row = codecs[isa]->encode(type, (enum stored_type)stored, rows.buf, n_rows, n_per_row,
                                  importance.buf, mean.buf, &search, blocks.buf);
    Py_END_ALLOW_THREADS
    result = PyLong_FromLongLong(bad_row);
done:
    PyBuffer_Release(&rows);
    PyBuffer_Release(&blocks);
    if (importance.obj)
        PyBuffer_Release(&importance);
    if (mean.obj)
        PyBuffer_Release(&mean);
    return result;
}

PyDoc_STRVAR(encode_columns_doc, "encode_columns(isa, type, rows, n_per_row, first, n_columns,"
                                 " importance, effort, blocks) -> int\n\n"
                                 "Fill blocks with columns of float32 rows; return -1 or the first"
                                 " row that is not finite.");

static PyObject *encode_columns(PyObject *self, PyObject *args)
{
    int isa, type_index, effort;
    long long n_per_row, first, n_columns;
    Py_buffer rows, blocks, importance = {0};
    (void)self;
    if (!PyArg_ParseTuple(args, "iiy*LLLz*iw*", &isa, &type_index, &rows, &n_per_row, &first,
                          &n_columns, &importance, &effort, &blocks))
        return NULL;

    PyObject *result = NULL;
    const struct quant_type *type = type_at(isa, type_index);
    if (!type)
        goto done;
    int64_t size = sizeof(float);
    int fits = effort >= 0 && effort < N_EFFORTS && n_per_row > 0 && n_per_row <= INT64_MAX / 8 &&
               first >= 0 && first <= n_per_row && n_columns > 0 &&
               n_columns <= n_per_row - first && n_columns % type->block_size == 0 &&
               rows.len % (n_per_row * size) == 0 && aligned(&rows) && aligned(&importance) &&
               (!importance.buf || holds(importance.len, n_columns, size));
    int64_t n_rows = fits ? rows.len / (n_per_row * size) : 0;
    if (!fits || !holds(blocks.len, n_rows * (n_columns / type->block_size), type->type_size)) {
        PyErr_SetString(PyExc_ValueError,
                        "rows, columns, importance, effort, blocks do not fit together");
        goto done;
    }
    int64_t bad_row;
    Py_BEGIN_ALLOW_THREADS
    bad_row = codecs[isa]->encode_columns(type, (const float *)rows.buf + first, n_rows, n_per_row,
                                          n_columns, importance.buf, (enum effort)effort,
                                          blocks.buf);
    Py_END_ALLOW_THREADS
    result = PyLong_FromLongLong(bad_row);
done:
    PyBuffer_Release(&rows);
    PyBuffer_Release(&blocks);
    if (importance.obj)
        PyBuffer_Release(&importance);
    return result;
}

PyDoc_STRVAR(decode_doc, "decode(isa, type, blocks, weights)\n\n"
                         "Fill weights, an aligned float32 buffer.");

static PyObject *decode(PyObject *self, PyObject *args)
{
    int isa, type_index;
    Py_buffer blocks, weights;
    (void)self;
    if (!PyArg_ParseTuple(args, "iiy*w*", &isa, &type_index, &blocks, &weights))
        return NULL;

    PyObject *result = NULL;
    const struct quant_type *type = type_at(isa, type_index);
    if (!type)
        goto done;
    int64_t n_blocks = blocks.len / type->type_size;
    if (blocks.len % type->type_size || !aligned(&weights) ||
        !holds(weights.len, n_blocks * type->block_size, sizeof(float))) {
        PyErr_SetString(PyExc_ValueError, "blocks and weights do not fit together");
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    type->decode(blocks.buf, weights.buf, n_blocks);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
done:
    PyBuffer_Release(&blocks);
    PyBuffer_Release(&weights);
    return result;
}

PyDoc_STRVAR(errors_doc, "errors(isa, original, rows, type, blocks, n_per_row, importance) ->"
                         " tuple\n\nThe five sums of struct errors.");

static PyObject *errors(PyObject *self, PyObject *args)
{
    int isa, original_index, type_index;
    long long n_per_row;
    Py_buffer rows, blocks, importance = {0};
    (void)self;
    if (!PyArg_ParseTuple(args, "iiy*iy*Lz*", &isa, &original_index, &rows, &type_index, &blocks,
                          &n_per_row, &importance))
        return NULL;

    PyObject *result = NULL;
    const struct quant_type *original = type_at(isa, original_index);
    const struct quant_type *type = original ? type_at(isa, type_index) : NULL;
    if (!type)
        goto done;
    int64_t n_blocks = blocks.len / type->type_size, n = n_blocks * type->block_size;
    if (blocks.len % type->type_size || n_per_row <= 0 || n % n_per_row ||
        n_per_row % type->block_size || n_per_row % original->block_size ||
        !holds(rows.len, n / original->block_size, original->type_size) ||
        (importance.buf && !holds(importance.len, n_per_row, sizeof(float)))) {
        PyErr_SetString(PyExc_ValueError, "rows, blocks, importance do not fit together");
        goto done;
    }
    struct errors sums;
    Py_BEGIN_ALLOW_THREADS
    sums = codecs[isa]->errors(original, rows.buf, type, blocks.buf, n, n_per_row, importance.buf);
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("(ddddd)", sums.difference, sums.original, sums.product, sums.decoded,
                           sums.largest);
done:
    PyBuffer_Release(&rows);
    PyBuffer_Release(&blocks);
    if (importance.obj)
        PyBuffer_Release(&importance);
    return result;
}

static PyMethodDef methods[] = {
    {"encode", encode, METH_VARARGS, encode_doc},
    {"encode_columns", encode_columns, METH_VARARGS, encode_columns_doc},
    {"decode", decode, METH_VARARGS, decode_doc},
    {"errors", errors, METH_VARARGS, errors_doc},
    {"decode_rows", face_decode_rows, METH_VARARGS, NULL},
    {"decode_transposed", face_decode_transposed, METH_VARARGS, NULL},
    {"mxfp4_of_codes", face_mxfp4_of_codes, METH_VARARGS, NULL},
    {"place_correlations", face_place_correlations, METH_VARARGS, NULL},
    {"factor_tiles", face_factor_tiles, METH_VARARGS, NULL},
    {"place_schur", face_place_schur, METH_VARARGS, NULL},
    {"encode_with_feedback", face_encode_with_feedback, METH_VARARGS, NULL},
    {"output_errors", face_output_errors, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

/* The names of positions that Python passes or receives, by the enums and structs of codec.h. */
static const char *const effort_names[N_EFFORTS] = {
    [EFFORT_FAST] = "fast", [EFFORT_NORMAL] = "normal", [EFFORT_BEST] = "best",
};
static const char *const stored_names[N_STORED] = {
    [STORED_F32] = "F32", [STORED_F16] = "F16", [STORED_BF16] = "BF16",
};
static const char *const number_names[N_NUMBERS] = {
    [NUMBER_E4M3] = "E4M3", [NUMBER_E5M2] = "E5M2", [NUMBER_E8M0] = "E8M0",
    [NUMBER_I8] = "I8",     [NUMBER_FP4] = "FP4",   [NUMBER_BITS] = "BITS",
};
static const char *const packing_names[N_PACKINGS] = {
    [PACKED_DOWN] = "down", [PACKED_ACROSS] = "across",
};
static const char *const sum_names[] = {"difference", "original", "product", "decoded", "largest"};

/* Add a tuple of names to the module; NULL becomes None. */
static int add_names(PyObject *module, const char *attribute, const char *const *names, int n)
{
    PyObject *tuple = PyTuple_New(n);
    if (!tuple)
        return -1;
    for (int i = 0; i < n; i++) {
        PyObject *name = names[i] ? PyUnicode_FromString(names[i]) : Py_NewRef(Py_None);
        if (!name || PyTuple_SetItem(tuple, i, name)) {
            Py_DECREF(tuple);
            return -1;
        }
    }
    int failed = PyModule_AddObjectRef(module, attribute, tuple);
    Py_DECREF(tuple);
    return failed;
}

/* TYPES: ((name, block_size, type_size), ...), the same for every build. */
static int add_types(PyObject *module)
{
    const struct codec *portable = codecs[0];
    PyObject *types = PyTuple_New(portable->n_types);
    if (!types)
        return -1;
    for (int i = 0; i < portable->n_types; i++) {
        const struct quant_type *t = &portable->types[i];
        PyObject *row = Py_BuildValue("(sii)", t->name, (int)t->block_size, (int)t->type_size);
        if (!row || PyTuple_SetItem(types, i, row)) {
            Py_DECREF(types);
            return -1;
        }
    }
    int failed = PyModule_AddObjectRef(module, "TYPES", types);
    Py_DECREF(types);
    return failed;
}

#define ADD_NAMES(attribute, names)                                                                \
    add_names(module, attribute, names, (int)(sizeof names / sizeof *names))

/* ISAS: (name or None, ...), None where this CPU does not support that build. The other tuples have
 * every name. */
static int add_tables(PyObject *module)
{
    const char *isas[N_ISAS];
    codecs_detect();
    for (int i = 0; i < N_ISAS; i++)
        isas[i] = codec_runs(i) ? codecs[i]->isa : NULL;
    if (ADD_NAMES("ISAS", isas) || ADD_NAMES("EFFORTS", effort_names) ||
        ADD_NAMES("STORED", stored_names) || ADD_NAMES("NUMBERS", number_names) ||
        ADD_NAMES("PACKINGS", packing_names) || ADD_NAMES("SUMS", sum_names))
        return -1;
    return add_types(module);
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, add_tables}, {0, NULL}};

static struct PyModuleDef core = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_core",
    .m_doc = "Blocks of every quant type: encode and decode, one build per ISA.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&core); }
