/* The Python interface of feedback.h and factor.h. */
#include <stdlib.h>

#include "face.h"
#include "factor.h"

/* The widest matrix that is supported, so that no product of sizes overflows. */
#define MAX_WIDTH (1 << 20)

static int is_width(int64_t n) { return n > 0 && n <= MAX_WIDTH && n % PANEL == 0; }

/* Memory at a multiple of 64 bytes inside a block that `free` takes. */
static void *aligned_in(void *block)
{
    return (void *)(((uintptr_t)block + 63) & ~(uintptr_t)63);
}

/* place_correlations(isa, n, correlations, damping, block, upper, diagonal): fill a row block. */
PyObject *face_place_correlations(PyObject *self, PyObject *args)
{
    int isa;
    long long n, block;
    double damping;
    Py_buffer correlations, upper, diagonal;
    (void)self;
    if (!PyArg_ParseTuple(args, "iLy*dLw*w*", &isa, &n, &correlations, &damping, &block, &upper,
                          &diagonal))
        return NULL;
    PyObject *result = NULL;
    const struct codec *codec = codec_at(isa);
    if (!codec)
        goto done;
    if (!is_width(n) || block < 0 || block * TILE >= n ||
        !holds(correlations.len, n * (n - 1) / 2, sizeof(uint16_t)) ||
        !holds(upper.len, factor_size(n), sizeof(float)) ||
        !holds(diagonal.len, diagonal_size(n), sizeof(float)) || !aligned(&upper) ||
        !aligned(&diagonal) || (uintptr_t)correlations.buf % 2) {
        PyErr_SetString(PyExc_ValueError, "correlations and the factor do not fit together");
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    codec->place_correlations(n, correlations.buf, damping, block, upper.buf, diagonal.buf);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
done:
    PyBuffer_Release(&correlations);
    PyBuffer_Release(&upper);
    PyBuffer_Release(&diagonal);
    return result;
}

/* factor_tiles(isa, n, upper, damping, block, first, last): tiles of a column block. */
PyObject *face_factor_tiles(PyObject *self, PyObject *args)
{
    int isa;
    long long n, block, first, last;
    double damping;
    Py_buffer upper;
    (void)self;
    if (!PyArg_ParseTuple(args, "iLw*dLLL", &isa, &n, &upper, &damping, &block, &first, &last))
        return NULL;
    PyObject *result = NULL;
    const struct codec *codec = codec_at(isa);
    if (!codec)
        goto done;
    if (!is_width(n) || block < 0 || block * TILE >= n || first < 0 || first > last ||
        last > block + 1 || !holds(upper.len, factor_size(n), sizeof(float)) || !aligned(&upper)) {
        PyErr_SetString(PyExc_ValueError, "the factor has not these tiles");
        goto done;
    }
    void *scratch = malloc(2 * TILE * TILE * sizeof(double) + 64);
    if (!scratch) {
        PyErr_NoMemory();
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    codec->factor_tiles(n, upper.buf, damping, block, first, last, aligned_in(scratch));
    Py_END_ALLOW_THREADS
    free(scratch);
    result = Py_NewRef(Py_None);
done:
    PyBuffer_Release(&upper);
    return result;
}

/* place_schur(isa, n, upper, block, schur): fill a square block. */
PyObject *face_place_schur(PyObject *self, PyObject *args)
{
    int isa;
    long long n, block;
    Py_buffer upper, schur;
    (void)self;
    if (!PyArg_ParseTuple(args, "iLy*Lw*", &isa, &n, &upper, &block, &schur))
        return NULL;
    PyObject *result = NULL;
    const struct codec *codec = codec_at(isa);
    if (!codec)
        goto done;
    if (!is_width(n) || block < 0 || block * TILE >= n ||
        !holds(upper.len, factor_size(n), sizeof(float)) ||
        !holds(schur.len, diagonal_size(n), sizeof(float)) || !aligned(&upper) ||
        !aligned(&schur)) {
        PyErr_SetString(PyExc_ValueError, "the factor has not this block");
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    codec->place_schur(n, upper.buf, block, schur.buf);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
done:
    PyBuffer_Release(&upper);
    PyBuffer_Release(&schur);
    return result;
}

static const struct quant_type *block_type(const struct codec *codec, int type)
{
    if (codec && type >= 0 && type < codec->n_types && codec->types[type].block_size > 1)
        return &codec->types[type];
    if (codec)
        PyErr_SetString(PyExc_ValueError, "no such quant type with blocks");
    return NULL;
}

/* encode_with_feedback(isa, type, stored, rows, n, importance, upper, diagonal, schur, scale,
 * effort, gain, sweeps, blocks, losses): fill blocks and losses; return -1 or the first row that
 * is not finite. */
PyObject *face_encode_with_feedback(PyObject *self, PyObject *args)
{
    int isa, type_index, stored, effort, sweeps;
    float gain;
    long long n;
    Py_buffer rows, importance, upper, diagonal, schur, scale, blocks, losses;
    (void)self;
    if (!PyArg_ParseTuple(args, "iiiy*Ly*y*y*y*y*ifiw*w*", &isa, &type_index, &stored, &rows, &n,
                          &importance, &upper, &diagonal, &schur, &scale, &effort, &gain, &sweeps,
                          &blocks, &losses))
        return NULL;
    PyObject *result = NULL;
    const struct codec *codec = codec_at(isa);
    const struct quant_type *type = block_type(codec, type_index);
    if (!type)
        goto done;
    int64_t size = stored == STORED_F32 ? 4 : 2;
    int64_t n_rows = is_width(n) ? rows.len / (n * size) : 0;
    if (!is_width(n) || stored < 0 || stored >= N_STORED || n % type->block_size || effort < 0 ||
        effort >= N_EFFORTS || sweeps < 0 || rows.len != n_rows * n * size ||
        !holds(importance.len, n, sizeof(float)) || !holds(scale.len, n, sizeof(float)) ||
        !holds(upper.len, factor_size(n), sizeof(float)) ||
        !holds(diagonal.len, diagonal_size(n), sizeof(float)) ||
        !holds(schur.len, diagonal_size(n), sizeof(float)) || !aligned(&schur) ||
        !holds(blocks.len, n_rows * (n / type->block_size), type->type_size) ||
        !holds(losses.len, n_rows, sizeof(double)) || !aligned(&importance) || !aligned(&upper) ||
        !aligned(&diagonal) || !aligned(&scale) || (uintptr_t)losses.buf % 8) {
        PyErr_SetString(PyExc_ValueError, "rows, factor, importance, blocks do not fit together");
        goto done;
    }
    void *scratch = malloc((size_t)codec->scratch_bytes(n) + 64);
    if (!scratch) {
        PyErr_NoMemory();
        goto done;
    }
    struct metric metric = {n, upper.buf, diagonal.buf, schur.buf, scale.buf};
    struct search search = {(enum effort)effort, 0, gain};
    int64_t bad_row;
    Py_BEGIN_ALLOW_THREADS
    bad_row = codec->encode_with_feedback(type, (enum stored_type)stored, rows.buf, n_rows, &metric,
                                          importance.buf, &search, sweeps, aligned_in(scratch),
                                          blocks.buf, losses.buf);
    Py_END_ALLOW_THREADS
    free(scratch);
    result = PyLong_FromLongLong(bad_row);
done:
    PyBuffer_Release(&rows);
    PyBuffer_Release(&importance);
    PyBuffer_Release(&upper);
    PyBuffer_Release(&diagonal);
    PyBuffer_Release(&schur);
    PyBuffer_Release(&scale);
    PyBuffer_Release(&blocks);
    PyBuffer_Release(&losses);
    return result;
}

/* output_errors(isa, type, stored, rows, n, blocks, sums, n_sums, errors): fill errors. */
PyObject *face_output_errors(PyObject *self, PyObject *args)
{
    int isa, type_index, stored;
    long long n, n_sums;
    Py_buffer rows, blocks, sums, errors;
    (void)self;
    if (!PyArg_ParseTuple(args, "iiiy*Ly*y*Lw*", &isa, &type_index, &stored, &rows, &n, &blocks,
                          &sums, &n_sums, &errors))
        return NULL;
    PyObject *result = NULL;
    const struct codec *codec = codec_at(isa);
    const struct quant_type *type = block_type(codec, type_index);
    if (!type)
        goto done;
    int64_t size = stored == STORED_F32 ? 4 : 2;
    int64_t n_rows = is_width(n) ? rows.len / (n * size) : 0;
    if (!is_width(n) || stored < 0 || stored >= N_STORED || n % type->block_size ||
        rows.len != n_rows * n * size || !is_width(n_sums) ||
        !holds(sums.len, n * n_sums, sizeof(float)) ||
        !holds(blocks.len, n_rows * (n / type->block_size), type->type_size) ||
        !holds(errors.len, n_rows, sizeof(double)) || !aligned(&sums) ||
        (uintptr_t)errors.buf % 8) {
        PyErr_SetString(PyExc_ValueError, "rows, blocks, sums do not fit together");
        goto done;
    }
    void *scratch = malloc((size_t)codec->scratch_bytes(n) + 64);
    if (!scratch) {
        PyErr_NoMemory();
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    codec->output_errors(type, (enum stored_type)stored, rows.buf, n_rows, n, blocks.buf, sums.buf,
                         n_sums, aligned_in(scratch), errors.buf);
    Py_END_ALLOW_THREADS
    free(scratch);
    result = Py_NewRef(Py_None);
done:
    PyBuffer_Release(&rows);
    PyBuffer_Release(&blocks);
    PyBuffer_Release(&sums);
    PyBuffer_Release(&errors);
    return result;
}
