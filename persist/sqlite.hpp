// SPDX-License-Identifier: Apache-2.0
/// RAII owners of SQLite's three handles: Connection, Statement, Transaction.
///
/// Errors are SQLite's extended result codes in a category of their own; sqlite_store.cpp maps them to Errc at its
/// boundary. Thread rule: a Connection with its Statements and Transactions belongs to one thread at a time (it is
/// opened without SQLite's mutexes). Lifetime: Statements and Transactions are destroyed before their Connection.
#pragma once

#include <sqlite3.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "base/result.hpp"

namespace stepstash::persist {

/// Category "sqlite": the value is an extended result code, the message is from sqlite3_errstr.
const std::error_category& sqlite_category() noexcept;

inline std::error_code sqlite_error(int extended_code) noexcept { return {extended_code, sqlite_category()}; }

/// One database connection. Moved-from is empty.
class Connection {
 public:
  Connection() noexcept = default;
  /// Opens an existing database file, read-write, without following symbolic links anywhere in `path`.
  static Result<Connection> open(const std::string& path, int busy_timeout_ms);

  sqlite3* get() const noexcept { return db_.get(); }
  explicit operator bool() const noexcept { return db_ != nullptr; }

  /// Runs every statement of `sql` and ignores their rows. `sql` is NUL-terminated.
  Result<> execute(const char* sql);
  /// The first column of the first row; 0 if there is no row.
  Result<std::int64_t> query_int(std::string_view sql);
  /// The same as text; empty if there is no row.
  Result<std::string> query_text(std::string_view sql);

  /// Describes the last failed call: SQLite's text, its extended code, and errno if there was one.
  std::string describe(std::error_code error) const;

  /// True if the file this connection writes is no longer the one at its path (deleted, renamed or replaced).
  bool file_has_moved() const noexcept;

  /// errno of the last failed system call on the database or its WAL, if it is one that SQLite reports as corruption on
  /// reads (SQLITE_IOERR_CORRUPTFS); else 0.
  int read_errno() const noexcept;

 private:
  struct Close {
    void operator()(sqlite3* db) const noexcept;
  };
  std::unique_ptr<sqlite3, Close> db_;
};

/// One prepared statement, meant for repeated use.
class Statement {
 public:
  Statement() noexcept = default;
  static Result<Statement> prepare(const Connection& connection, std::string_view sql);

  /// Parameters count from 1. Text and bytes are not copied: they must stay readable until the next reset(). A failure
  /// to bind is reported by the next step().
  Statement& bind(int index, std::int64_t value) noexcept;
  Statement& bind(int index, std::string_view text) noexcept;
  Statement& bind_blob(int index, std::span<const std::byte> bytes) noexcept;
  Statement& bind_null(int index) noexcept;

  /// True: a row can be read. False: the end; the statement has been reset.
  Result<bool> step();
  /// Runs to the end, ignoring rows, and resets, even after an error.
  Result<> run();
  /// Ends the read transaction of a half-read SELECT, and releases bound bytes.
  void reset() noexcept;

  /// Columns count from 0. Views are valid until the next step() or reset().
  bool is_null(int column) const noexcept;
  std::int64_t integer(int column) const noexcept;
  std::string_view text(int column) const noexcept;
  std::span<const std::byte> blob(int column) const noexcept;

 private:
  struct Finalize {
    void operator()(sqlite3_stmt* statement) const noexcept { sqlite3_finalize(statement); }
  };
  void note(int code) noexcept {
    if (code != SQLITE_OK && bind_code_ == SQLITE_OK) bind_code_ = code;
  }
  std::unique_ptr<sqlite3_stmt, Finalize> stmt_;
  int bind_code_ = SQLITE_OK;
};

/// Resets a statement at the end of a scope, so that no early return leaves a read transaction open.
class Reset {
 public:
  explicit Reset(Statement& statement) noexcept : statement_(statement) {}
  Reset(const Reset&) = delete;
  Reset& operator=(const Reset&) = delete;
  ~Reset() { statement_.reset(); }

 private:
  Statement& statement_;
};

/// One transaction; the destructor rolls it back unless it was committed. Moved-from is empty.
class Transaction {
 public:
  /// BEGIN IMMEDIATE: waits for other writers here, within the busy timeout, and never later.
  static Result<Transaction> begin_write(Connection& connection);
  /// One snapshot for several SELECTs. Does not wait for writers.
  static Result<Transaction> begin_read(Connection& connection);

  Transaction(Transaction&& other) noexcept : connection_(std::exchange(other.connection_, nullptr)) {}
  Transaction& operator=(Transaction&&) = delete;
  ~Transaction();

  /// After an error the outcome is unknown until the database is opened again: the transaction may have been committed.
  Result<> commit();

 private:
  explicit Transaction(Connection* connection) noexcept : connection_(connection) {}
  Connection* connection_;
};

}  // namespace stepstash::persist
