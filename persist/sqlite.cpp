// SPDX-License-Identifier: Apache-2.0
#include "persist/sqlite.hpp"

#include <cassert>
#include <cerrno>
#include <cstring>

namespace stepstash::persist {
namespace {

class Category final : public std::error_category {
 public:
  const char* name() const noexcept override { return "sqlite"; }
  std::string message(int value) const override { return sqlite3_errstr(value); }
};

}  // namespace

const std::error_category& sqlite_category() noexcept {
  static const Category instance;
  return instance;
}

void Connection::Close::operator()(sqlite3* db) const noexcept {
  [[maybe_unused]] const int code = sqlite3_close(db);
  assert(code == SQLITE_OK && "a Statement outlived its Connection");
}

Result<Connection> Connection::open(const std::string& path, int busy_timeout_ms) {
  sqlite3* raw = nullptr;
  const int code = sqlite3_open_v2(
      path.c_str(), &raw, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_NOFOLLOW | SQLITE_OPEN_EXRESCODE,
      nullptr);
  Connection connection;
  connection.db_.reset(raw);  // SQLite returns a handle even after most failures
  if (code != SQLITE_OK) return sqlite_error(code);
  sqlite3_busy_timeout(raw, busy_timeout_ms);
  return connection;
}

Result<> Connection::execute(const char* sql) {
  const int code = sqlite3_exec(db_.get(), sql, nullptr, nullptr, nullptr);
  if (code != SQLITE_OK) return sqlite_error(code);
  return success();
}

Result<std::int64_t> Connection::query_int(std::string_view sql) {
  auto statement = STEPSTASH_TRY(Statement::prepare(*this, sql));
  return STEPSTASH_TRY(statement.step()) ? statement.integer(0) : 0;
}

Result<std::string> Connection::query_text(std::string_view sql) {
  auto statement = STEPSTASH_TRY(Statement::prepare(*this, sql));
  return STEPSTASH_TRY(statement.step()) ? std::string(statement.text(0)) : std::string();
}

std::string Connection::describe(std::error_code error) const {
  std::string text = error.message();
  if (error.category() != sqlite_category()) return text;
  // errmsg refers to the last call on the connection; a rollback may have come in between.
  if (db_ && sqlite3_extended_errcode(db_.get()) == error.value()) {
    if (const std::string more = sqlite3_errmsg(db_.get()); more != text) text += ": " + more;
  }
  text += " (SQLite code " + std::to_string(error.value());
  const int primary = error.value() & 0xFF;
  const bool damage = primary == SQLITE_CORRUPT || primary == SQLITE_NOTADB;
  const int number = !db_ ? 0 : damage ? read_errno() : sqlite3_system_errno(db_.get());
  if (number != 0 && (damage || primary == SQLITE_IOERR || primary == SQLITE_CANTOPEN || primary == SQLITE_FULL)) {
    text += ", " + std::system_category().message(number);
  }
  return text + ")";
}

bool Connection::file_has_moved() const noexcept {
  int moved = 0;
  return sqlite3_file_control(db_.get(), "main", SQLITE_FCNTL_HAS_MOVED, &moved) == SQLITE_OK && moved != 0;
}

int Connection::read_errno() const noexcept {
  const auto told_as_damage = [](int number) { return number == EIO || number == ENXIO || number == ERANGE; };
  int number = 0;
  if (sqlite3_file_control(db_.get(), "main", SQLITE_FCNTL_LAST_ERRNO, &number) == SQLITE_OK && told_as_damage(number))
    return number;
  sqlite3_file* journal = nullptr;
  number = 0;
  if (sqlite3_file_control(db_.get(), "main", SQLITE_FCNTL_JOURNAL_POINTER, &journal) == SQLITE_OK &&
      journal != nullptr && journal->pMethods != nullptr) {
    journal->pMethods->xFileControl(journal, SQLITE_FCNTL_LAST_ERRNO, &number);
  }
  return told_as_damage(number) ? number : 0;
}

Result<Statement> Statement::prepare(const Connection& connection, std::string_view sql) {
  sqlite3_stmt* raw = nullptr;
  const int code = sqlite3_prepare_v3(connection.get(), sql.data(), static_cast<int>(sql.size()),
                                      SQLITE_PREPARE_PERSISTENT, &raw, nullptr);
  if (code != SQLITE_OK) return sqlite_error(code);
  Statement statement;
  statement.stmt_.reset(raw);
  return statement;
}

Statement& Statement::bind(int index, std::int64_t value) noexcept {
  note(sqlite3_bind_int64(stmt_.get(), index, value));
  return *this;
}

Statement& Statement::bind(int index, std::string_view text) noexcept {
  // A null pointer would bind NULL, but the empty name is legal.
  note(sqlite3_bind_text64(stmt_.get(), index, text.empty() ? "" : text.data(), text.size(), SQLITE_STATIC,
                           SQLITE_UTF8));
  return *this;
}

Statement& Statement::bind_blob(int index, std::span<const std::byte> bytes) noexcept {
  // Likewise: an empty value is not NULL.
  note(bytes.empty() ? sqlite3_bind_zeroblob(stmt_.get(), index, 0)
                     : sqlite3_bind_blob64(stmt_.get(), index, bytes.data(), bytes.size(), SQLITE_STATIC));
  return *this;
}

Statement& Statement::bind_null(int index) noexcept {
  note(sqlite3_bind_null(stmt_.get(), index));
  return *this;
}

Result<bool> Statement::step() {
  const int code = bind_code_ != SQLITE_OK ? bind_code_ : sqlite3_step(stmt_.get());
  if (code == SQLITE_ROW) return true;
  reset();
  if (code == SQLITE_DONE) return false;
  return sqlite_error(code);
}

Result<> Statement::run() {
  const Reset at_end(*this);
  while (STEPSTASH_TRY(step())) {
  }
  return success();
}

void Statement::reset() noexcept {
  if (!stmt_) return;
  sqlite3_reset(stmt_.get());
  sqlite3_clear_bindings(stmt_.get());
  bind_code_ = SQLITE_OK;
}

bool Statement::is_null(int column) const noexcept { return sqlite3_column_type(stmt_.get(), column) == SQLITE_NULL; }

std::int64_t Statement::integer(int column) const noexcept { return sqlite3_column_int64(stmt_.get(), column); }

std::string_view Statement::text(int column) const noexcept {
  const auto* data = reinterpret_cast<const char*>(sqlite3_column_text(stmt_.get(), column));
  if (data == nullptr) return {};
  return {data, static_cast<std::size_t>(sqlite3_column_bytes(stmt_.get(), column))};
}

std::span<const std::byte> Statement::blob(int column) const noexcept {
  const auto* data = static_cast<const std::byte*>(sqlite3_column_blob(stmt_.get(), column));
  if (data == nullptr) return {};
  return {data, static_cast<std::size_t>(sqlite3_column_bytes(stmt_.get(), column))};
}

Result<Transaction> Transaction::begin_write(Connection& connection) {
  STEPSTASH_TRY(connection.execute("BEGIN IMMEDIATE"));
  return Transaction(&connection);
}

Result<Transaction> Transaction::begin_read(Connection& connection) {
  STEPSTASH_TRY(connection.execute("BEGIN"));
  return Transaction(&connection);
}

Transaction::~Transaction() {
  // Some errors (disk full, I/O) make SQLite roll back by itself; ROLLBACK would then be an error of its own.
  if (connection_ != nullptr && sqlite3_get_autocommit(connection_->get()) == 0) {
    (void)connection_->execute("ROLLBACK");
  }
}

Result<> Transaction::commit() {
  STEPSTASH_TRY(connection_->execute("COMMIT"));
  connection_ = nullptr;
  return success();
}

}  // namespace stepstash::persist
